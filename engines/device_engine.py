"""Engines that run on a device's own buffers, enqueued on its streams."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from vexpress_trt.engines.manifest import GraphSpec


class DeviceEngine(ABC):
    """A loaded graph whose inputs and outputs can be memory of a device.

    A buffer has `shape` and `dtype` and is a NumPy array or something with `__cuda_array_interface__`. Inputs that are
    not bound to a buffer keep the arrays that `bind` gave them.
    """

    spec: GraphSpec
    cancelled: bool

    @abstractmethod
    def bind_buffers(self, **buffers: Any) -> None:
        """Read these inputs from, and write these outputs to, buffers; they must stay alive until bound anew."""

    @abstractmethod
    def enqueue(self, stream: int) -> None:
        """Enqueue one run on a stream, given as handle; does not wait for it.

        The first run with new shapes may take longer: it chooses algorithms and allocates.
        """

    @abstractmethod
    def capture(self, stream: int, body: Callable[[], None]) -> Callable[[], None]:
        """Record what `body` enqueues on the stream, `enqueue` of this engine among it, without running it; returns
        what enqueues it all again at once. For a backend that captures nothing that is `body` itself, and a warning
        says so. Raises UserError where a capture fails."""
