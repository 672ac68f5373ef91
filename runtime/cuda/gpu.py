"""The device that is an NVIDIA GPU, through its driver."""

import contextlib
import ctypes
import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from vexpress_trt.engines.driver import driver
from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.cuda.device import ALIGNMENT, POLL_SECONDS, Device, Event, Shapes
from vexpress_trt.runtime.cuda.kernels import kernels


@dataclass(frozen=True)
class GpuBuffer:
    """Memory on a GPU: its address, and how it is to be read. Other libraries take it without a copy."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The bytes, as one row: the interface has no name for bfloat16."""
        return {"shape": (self.nbytes,), "typestr": "|u1", "data": (self.pointer, False), "version": 3, "strides": None}


class GpuDevice(Device):
    """Streams do not wait for the legacy default stream, and are the next device's when this one is closed. Methods may
    be called from any thread, by one at a time."""

    def __init__(self, index: int = 0) -> None:
        """`index`: the GPU's number among the visible ones. Raises UserError where it cannot be used."""
        self.kernels = kernels(index)
        self._driver = driver(index)
        self._closed = False
        self._memory: list[int] = []
        self._pinned: list[int] = []
        self._streams: list[int] = []
        self._events: list[Event] = []

    def arena(self, shapes: Shapes) -> dict[str, GpuBuffer]:
        places, total = {}, 0
        for name, (shape, dtype) in shapes.items():
            places[name] = total
            size = math.prod(shape) * np.dtype(dtype).itemsize
            total += -(-size // ALIGNMENT) * ALIGNMENT
        with self._driver.current():
            base = self._allocated(total)
            self._memory.append(base)
            stream = self._driver.stream_take()  # to wait for nothing else, and for no capture of another clip's
            try:
                self._driver.memset(base, 0, total, stream)
                self._driver.stream_synchronize(stream)
            finally:
                self._driver.idle_streams.appendleft(stream)
        return {
            name: GpuBuffer(base + places[name], tuple(shape), np.dtype(dtype))
            for name, (shape, dtype) in shapes.items()
        }

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with self._driver.current():
            address = self._driver.mem_host_alloc(size)
        self._pinned.append(address)
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        array[:] = 0
        return array.view(dtype).reshape(shape)

    def stream(self) -> int:
        with self._driver.current():
            stream = self._driver.stream_take()
        self._streams.append(stream)
        return stream

    def event(self) -> Event:
        with self._driver.current():
            event = self._driver.event_create()
        self._events.append(event)
        return event

    def record(self, event: Event, stream: int) -> None:
        with self._driver.current():
            self._driver.event_record(event, stream)

    def wait(self, stream: int, event: Event) -> None:
        with self._driver.current():
            self._driver.stream_wait_event(stream, event)

    def happened(self, event: Event) -> bool:
        with self._driver.current():
            return self._driver.event_query(event)

    def upload(self, array: np.ndarray, target: GpuBuffer, stream: int) -> None:
        _require_same_size(array, target)
        with self._driver.current():
            self._driver.memcpy_htod(target.pointer, array, stream)

    def download(self, buffer: GpuBuffer, target: np.ndarray, stream: int) -> None:
        _require_same_size(target, buffer)
        with self._driver.current():
            self._driver.memcpy_dtoh(target, buffer.pointer, stream)

    def copy(self, buffer: GpuBuffer, target: GpuBuffer, stream: int) -> None:
        if buffer.nbytes != target.nbytes:
            raise ValueError(f"{buffer.nbytes} bytes do not fit {target.nbytes} on the GPU")
        with self._driver.current():
            self._driver.memcpy_dtod(target.pointer, buffer.pointer, target.nbytes, stream)

    def clear(self, buffer: GpuBuffer, stream: int) -> None:
        with self._driver.current():
            self._driver.memset(buffer.pointer, 0, buffer.nbytes, stream)

    def part(self, buffer: GpuBuffer, start: int, shape: tuple[int, ...]) -> GpuBuffer:
        return GpuBuffer(buffer.pointer + start * buffer.dtype.itemsize, tuple(shape), buffer.dtype)

    def address(self, buffer: GpuBuffer) -> int:
        return buffer.pointer

    def close(self) -> None:
        """Waits for everything enqueued. Pinned arrays must not be used any more.

        Does not raise: after a fault of the GPU each call answers with it, and it was told about before.
        """
        if self._closed:
            return
        self._closed = True
        gpu = self._driver
        with contextlib.suppress(UserError), gpu.current():
            gone = [stream for stream in self._streams if not self._settled(stream)]
            gpu.idle_streams += (stream for stream in self._streams if stream not in gone)
            for free, held in (
                (gpu.event_destroy, self._events),
                (gpu.stream_destroy, gone),
                (gpu.mem_free_host, self._pinned),
                (gpu.mem_free, self._memory),
            ):
                for one in held:
                    with contextlib.suppress(UserError):
                        free(one)

    def _allocated(self, size: int) -> int:
        """Memory of `size` bytes; where there is too little, torch first gives back what it holds without using it."""
        what, remedy = "latents, features and tables", "use fewer steps, fewer --context_frames or a smaller image"
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            with contextlib.suppress(UserError):
                return self._driver.mem_alloc(size, what, remedy)
            with contextlib.suppress(RuntimeError):  # after a fault of the GPU, or in another clip's capture
                torch.cuda.empty_cache()
        return self._driver.mem_alloc(size, what, remedy)

    def _settled(self, stream: int) -> bool:
        """Wait until the stream's work is done; False where it failed."""
        try:
            while not self._driver.stream_query(stream):
                time.sleep(POLL_SECONDS)
        except UserError:
            return False
        return True


def _require_same_size(array: np.ndarray, buffer: GpuBuffer) -> None:
    if array.nbytes != buffer.nbytes or not array.flags.c_contiguous:
        raise ValueError(f"{array.nbytes} bytes on the host do not fit {buffer.nbytes} on the GPU")
