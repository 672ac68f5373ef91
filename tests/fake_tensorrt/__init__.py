"""TensorRT's Python module, played on the CPU. Its names are held to the real bindings by `test_conformance`."""

from fake_tensorrt.builder import *  # noqa: F403
from fake_tensorrt.runtime import *  # noqa: F403
