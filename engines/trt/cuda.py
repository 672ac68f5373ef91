"""One GPU's memory, streams and captured work, through its driver: what an engine needs beside TensorRT itself."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from vexpress_trt.engines.errors import UserError

_NON_BLOCKING = 1  # CUstream_flags


class Cuda:
    """The GPU's primary context, which other libraries of this process use as well. Addresses and streams are numbers.

    Memory and streams are made and used with the context current (`current`).
    """

    def __init__(self, gpu: int) -> None:
        """`gpu`: its number among the visible ones. Raises UserError where it cannot be used."""
        try:
            from cuda.bindings import driver
        except ImportError as problem:
            raise UserError(
                f"TensorRT's engines need cuda-bindings ({problem}): pip install 'vexpress-trt[cuda]'"
            ) from None
        self._driver: Any = driver
        try:
            self._call("cuInit", 0)
        except RuntimeError as problem:  # what cuda-bindings raises where there is no driver library
            raise UserError(f"no NVIDIA driver here ({problem}): choose a backend that runs on the CPU") from None
        self._context = self._call("cuDevicePrimaryCtxRetain", self._call("cuDeviceGet", gpu))

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context this thread's current one, and the one before afterwards."""
        self._call("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    def allocate(self, size: int) -> int:
        """Memory of `size` bytes, at a multiple of 256. Raises UserError where there is too little."""
        try:
            return int(self._call("cuMemAlloc", max(size, 1)))
        except UserError as problem:
            free, _ = self._driver.cuMemGetInfo()[1:]
            raise UserError(
                f"the GPU has no room for another {size / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free ({problem}): "
                "use --save_gpu_memory, fewer --context_frames or a smaller image, or close other programs on it"
            ) from None

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def upload(self, array: np.ndarray, address: int, stream: int) -> None:
        """Enqueue the copy of a contiguous array, which must not change until the stream was waited for."""
        self._call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)

    def download(self, address: int, array: np.ndarray, stream: int) -> None:
        """Enqueue the copy into a contiguous array."""
        self._call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, stream)

    def stream(self) -> int:
        """A new stream that does not wait for the legacy default stream."""
        return int(self._call("cuStreamCreate", _NON_BLOCKING))

    def destroy(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def wait(self, stream: int) -> None:
        """Until all work of the stream is done. Raises UserError where it failed."""
        self._call("cuStreamSynchronize", stream)

    def capture(self, stream: int, body: Callable[[], None]) -> Callable[[], None]:
        """Record what `body` enqueues on the stream, without running it; returns what enqueues it again as a whole."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with self.current():
            self._call("cuStreamBeginCapture", stream, mode)
            try:
                body()
            except BaseException:
                self._driver.cuStreamEndCapture(stream)
                raise
            graph = self._call("cuStreamEndCapture", stream)
            try:
                captured = _Captured(self, self._call("cuGraphInstantiate", graph, 0), stream)
            finally:
                self._call("cuGraphDestroy", graph)
        return captured

    def milliseconds(self, stream: int, body: Callable[[], None]) -> float:
        """How long the GPU takes for what `body` enqueues on the stream; waits for it."""
        start, end = self._call("cuEventCreate", 0), self._call("cuEventCreate", 0)
        try:
            self._call("cuEventRecord", start, stream)
            body()
            self._call("cuEventRecord", end, stream)
            self.wait(stream)
            return float(self._call("cuEventElapsedTime", start, end))
        finally:
            self._call("cuEventDestroy", start)
            self._call("cuEventDestroy", end)

    def launch(self, executable: Any, stream: int) -> None:
        """Enqueue captured work."""
        with self.current():
            self._call("cuGraphLaunch", executable, stream)

    def forget(self, executable: Any) -> None:
        """Free captured work."""
        with self.current():
            self._call("cuGraphExecDestroy", executable)

    def _call(self, function: str, *arguments: Any) -> Any:
        code, *given = getattr(self._driver, function)(*arguments)
        if code != self._driver.CUresult.CUDA_SUCCESS:
            name, text = (
                found.decode() if found else str(code)
                for found in (self._driver.cuGetErrorName(code)[1], self._driver.cuGetErrorString(code)[1])
            )
            raise UserError(f"the NVIDIA driver reports {name} from {function}: {text}")
        return given[0] if given else None


class _Captured:
    """Captured work, freed with the last reference to it."""

    def __init__(self, cuda: Cuda, executable: Any, stream: int) -> None:
        self._cuda, self._executable, self._stream = cuda, executable, stream

    def __call__(self) -> None:
        self._cuda.launch(self._executable, self._stream)

    def __del__(self) -> None:
        self._cuda.forget(self._executable)


@functools.cache
def cuda(gpu: int) -> Cuda:
    """The GPU of this number; all engines of the process share its context. Raises UserError as `Cuda` does."""
    return Cuda(gpu)
