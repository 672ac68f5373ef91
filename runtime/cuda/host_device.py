"""A device that is the CPU: arrays in place of buffers, and work is done when it is enqueued. For tests of the loop."""

from itertools import count

import numpy as np

from vexpress_trt.runtime.cuda.device import Device, Event, Shapes
from vexpress_trt.runtime.cuda.host_kernels import HostKernels


class HostDevice(Device):
    """Buffers are NumPy arrays."""

    def __init__(self) -> None:
        self.kernels = HostKernels()
        self._streams = count(1)

    def arena(self, shapes: Shapes) -> dict[str, np.ndarray]:
        return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return np.zeros(shape, dtype)

    def stream(self) -> int:
        return next(self._streams)

    def event(self) -> Event:
        return object()

    def record(self, event: Event, stream: int) -> None:
        pass

    def wait(self, stream: int, event: Event) -> None:
        pass

    def happened(self, event: Event) -> bool:
        return True

    def upload(self, array: np.ndarray, target: np.ndarray, stream: int) -> None:
        target.reshape(-1).view(np.uint8)[:] = array.reshape(-1).view(np.uint8)

    def download(self, buffer: np.ndarray, target: np.ndarray, stream: int) -> None:
        target.reshape(-1).view(np.uint8)[:] = buffer.reshape(-1).view(np.uint8)

    def copy(self, buffer: np.ndarray, target: np.ndarray, stream: int) -> None:
        self.upload(buffer, target, stream)

    def clear(self, buffer: np.ndarray, stream: int) -> None:
        buffer[...] = 0

    def part(self, buffer: np.ndarray, start: int, shape: tuple[int, ...]) -> np.ndarray:
        return buffer.reshape(-1)[start : start + int(np.prod(shape))].reshape(shape)

    def address(self, buffer: np.ndarray) -> np.ndarray:
        return buffer

    def close(self) -> None:
        pass
