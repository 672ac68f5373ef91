"""The device that is an NVIDIA GPU, through its driver."""

import ctypes
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.cuda import nvrtc
from vexpress_trt.runtime.cuda.device import ALIGNMENT, Device, Event, Shapes
from vexpress_trt.runtime.cuda.kernels import Current, Kernels, checked

_NON_BLOCKING = 1  # CUstream_flags
_NO_TIMING = 2  # CUevent_flags


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
    """Streams do not wait for the legacy default stream. Methods may be called from any thread, by one at a time."""

    def __init__(self, index: int = 0) -> None:
        """`index`: the GPU's number among the visible ones. Raises UserError where it cannot be used."""
        self.kernels = Kernels(index)
        self._driver = nvrtc.bindings("driver")
        self._device = self._call("cuDeviceGet", index)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._memory: list[Any] = []
        self._pinned: list[Any] = []
        self._streams: list[Any] = []
        self._events: list[Any] = []

    def arena(self, shapes: Shapes) -> dict[str, GpuBuffer]:
        places, total = {}, 0
        for name, (shape, dtype) in shapes.items():
            places[name] = total
            size = math.prod(shape) * np.dtype(dtype).itemsize
            total += -(-size // ALIGNMENT) * ALIGNMENT
        with self._current():
            try:
                base = self._call("cuMemAlloc", total)
            except UserError as problem:
                raise UserError(
                    f"the GPU has no room for {total / 2**20:.0f} MiB of latents, features and tables ({problem}): use "
                    "fewer steps, fewer --context_frames or a smaller image"
                ) from None
            self._memory.append(base)
            self._call("cuMemsetD8", base, 0, total)
            self._call("cuCtxSynchronize")
        return {
            name: GpuBuffer(int(base) + places[name], tuple(shape), np.dtype(dtype))
            for name, (shape, dtype) in shapes.items()
        }

    def pinned(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with self._current():
            address = self._call("cuMemHostAlloc", max(size, 1), 0)
        self._pinned.append(address)
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))
        array[:] = 0
        return array.view(dtype).reshape(shape)

    def stream(self) -> int:
        with self._current():
            stream = self._call("cuStreamCreate", _NON_BLOCKING)
        self._streams.append(stream)
        return int(stream)

    def event(self) -> Event:
        with self._current():
            event = self._call("cuEventCreate", _NO_TIMING)
        self._events.append(event)
        return event

    def record(self, event: Event, stream: int) -> None:
        with self._current():
            self._call("cuEventRecord", event, stream)

    def wait(self, stream: int, event: Event) -> None:
        with self._current():
            self._call("cuStreamWaitEvent", stream, event, 0)

    def happened(self, event: Event) -> bool:
        with self._current():
            (code,) = self._driver.cuEventQuery(event)
            if code == self._driver.CUresult.CUDA_ERROR_NOT_READY:
                return False
            self._call("cuEventQuery", event)
        return True

    def upload(self, array: np.ndarray, target: GpuBuffer, stream: int) -> None:
        _require_same_size(array, target)
        with self._current():
            self._call("cuMemcpyHtoDAsync", target.pointer, array.ctypes.data, array.nbytes, stream)

    def download(self, buffer: GpuBuffer, target: np.ndarray, stream: int) -> None:
        _require_same_size(target, buffer)
        with self._current():
            self._call("cuMemcpyDtoHAsync", target.ctypes.data, buffer.pointer, target.nbytes, stream)

    def copy(self, buffer: GpuBuffer, target: GpuBuffer, stream: int) -> None:
        if buffer.nbytes != target.nbytes:
            raise ValueError(f"{buffer.nbytes} bytes do not fit {target.nbytes} on the GPU")
        with self._current():
            self._call("cuMemcpyDtoDAsync", target.pointer, buffer.pointer, target.nbytes, stream)

    def clear(self, buffer: GpuBuffer, stream: int) -> None:
        with self._current():
            self._call("cuMemsetD8Async", buffer.pointer, 0, buffer.nbytes, stream)

    def part(self, buffer: GpuBuffer, start: int, shape: tuple[int, ...]) -> GpuBuffer:
        return GpuBuffer(buffer.pointer + start * buffer.dtype.itemsize, tuple(shape), buffer.dtype)

    def address(self, buffer: GpuBuffer) -> int:
        return buffer.pointer

    def close(self) -> None:
        """Waits for everything enqueued. Pinned arrays must not be used any more."""
        if self._context is None:
            return
        with self._current():
            for stream in self._streams:
                while self._driver.cuStreamQuery(stream)[0] == self._driver.CUresult.CUDA_ERROR_NOT_READY:
                    time.sleep(0.0005)
            for event in self._events:
                self._call("cuEventDestroy", event)
            for stream in self._streams:
                self._call("cuStreamDestroy", stream)
            for address in self._pinned:
                self._call("cuMemFreeHost", address)
            for base in self._memory:
                self._call("cuMemFree", base)
        self.kernels.close()
        self._call("cuDevicePrimaryCtxRelease", self._device)
        self._context = None

    def _current(self) -> Current:
        return Current(self._driver, self._context)

    def _call(self, function: str, *arguments: Any) -> Any:
        return checked(self._driver, function, *arguments)


def _require_same_size(array: np.ndarray, buffer: GpuBuffer) -> None:
    if array.nbytes != buffer.nbytes or not array.flags.c_contiguous:
        raise ValueError(f"{array.nbytes} bytes on the host do not fit {buffer.nbytes} on the GPU")
