"""What the loop needs of a device: memory, streams, events and kernels. All work is enqueued; nothing here waits."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

Buffer = Any  # memory of a device with `shape` and `dtype`, which its engines and kernels take
Event = Any
Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]
ALIGNMENT = 256  # bytes, of buffers in an arena; what the vectorised kernels and the engines' libraries like best
POLL_SECONDS = 0.0005  # between looks at whether work is done


class Device(ABC):
    """Streams are numbers (a CUDA stream's handle). Work of one stream runs in order; between streams only events
    order it. Host arrays that are copied must come from `pinned` and must not change until the copy has run."""

    kernels: Any  # has the methods of `kernels.Kernels`

    @abstractmethod
    def arena(self, shapes: Shapes) -> dict[str, Buffer]:
        """Buffers of these shapes and dtypes, filled with zeros, in one allocation. Raises UserError where there is
        too little memory."""

    @abstractmethod
    def pinned(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A host array, filled with zeros, that can be copied from and to the device while the host goes on."""

    @abstractmethod
    def stream(self) -> int:
        """A new stream."""

    @abstractmethod
    def event(self) -> Event:
        """A new event."""

    @abstractmethod
    def record(self, event: Event, stream: int) -> None:
        """The event happens when the stream has done what is enqueued in it so far."""

    @abstractmethod
    def wait(self, stream: int, event: Event) -> None:
        """What is enqueued in the stream from now on waits for the event as last recorded."""

    @abstractmethod
    def happened(self, event: Event) -> bool:
        """Whether the event as last recorded has happened; does not wait."""

    @abstractmethod
    def upload(self, array: np.ndarray, target: Buffer, stream: int) -> None:
        """Copy a contiguous host array to a buffer of the same size in bytes."""

    @abstractmethod
    def download(self, buffer: Buffer, target: np.ndarray, stream: int) -> None:
        """Copy a buffer to a contiguous host array of the same size in bytes."""

    @abstractmethod
    def copy(self, buffer: Buffer, target: Buffer, stream: int) -> None:
        """Copy a buffer to another one of the same size in bytes."""

    @abstractmethod
    def clear(self, buffer: Buffer, stream: int) -> None:
        """Fill a buffer with zeros."""

    @abstractmethod
    def part(self, buffer: Buffer, start: int, shape: tuple[int, ...]) -> Buffer:
        """The same memory from element number `start` on, as this shape."""

    @abstractmethod
    def address(self, buffer: Buffer) -> Any:
        """What the kernels take for a buffer."""

    @abstractmethod
    def close(self) -> None:
        """Wait for everything enqueued, then free all memory."""
