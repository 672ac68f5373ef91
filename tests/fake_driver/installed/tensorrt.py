"""TensorRT as a machine has it that runs on the stand-in: `fake_tensorrt`, whose runs are work of a stream."""

import fake_tensorrt
from fake_driver.stand_in import StandIn
from fake_tensorrt import *  # noqa: F403

__version__ = "11.4"

fake_tensorrt.IExecutionContext._put = staticmethod(StandIn().enqueue)
