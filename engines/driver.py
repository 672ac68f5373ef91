"""One GPU through the NVIDIA driver: context, memory, streams, events and captured work, under the driver's names."""

import contextlib
import functools
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from vexpress_trt.engines.errors import UserError

_NON_BLOCKING = 1  # CUstream_flags: the stream does not wait for the legacy default stream
_NO_TIMING = 2  # CUevent_flags
# After these a process gets the same error from every call (the descriptions of CUresult in cuda.h).
_LASTING = {226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911}


class Driver:
    """The GPU's primary context, which other libraries of this process use as well.

    Addresses and streams are numbers. What is not told to wait only enqueues. Everything but `call` with what needs no
    context is used with the context current on the calling thread (`current`); any thread may do so.

    `idle_streams` are for whoever needs a stream next: libraries keep memory for each stream that they have met, torch
    32 MiB of cuBLAS's on an H100, and nothing tells them that one is gone.
    """

    def __init__(self, gpu: int) -> None:
        """`gpu`: its number among the visible ones. Raises UserError where it cannot be used."""
        try:
            from cuda.bindings import driver
        except ImportError as problem:
            raise UserError(f"a GPU needs cuda-bindings ({problem}): pip install 'vexpress-trt[cuda]'") from None
        self.module: Any = driver
        try:
            self.call("cuInit", 0)
        except RuntimeError as problem:  # what cuda-bindings raises where there is no driver library
            raise UserError(f"no NVIDIA driver here ({problem}): choose a backend that runs on the CPU") from None
        count = self.call("cuDeviceGetCount")
        if not 0 <= gpu < count:
            raise UserError(f"there is no GPU {gpu}: the driver lists {count}, counted from 0")
        self.device = self.call("cuDeviceGet", gpu)
        self._context = self.call("cuDevicePrimaryCtxRetain", self.device)
        self.idle_streams: deque[int] = deque()
        attribute = driver.CUdevice_attribute
        self.capability: tuple[int, int] = tuple(
            self.call("cuDeviceGetAttribute", wanted, self.device)
            for wanted in (
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )

    def call(self, function: str, *arguments: Any) -> Any:
        """What a function of the driver gives. Raises UserError with the driver's name of an error and its text."""
        code, *given = getattr(self.module, function)(*arguments)
        if code != self.module.CUresult.CUDA_SUCCESS:
            name, text = (
                found.decode() if found else str(code)
                for found in (self.module.cuGetErrorName(code)[1], self.module.cuGetErrorString(code)[1])
            )
            remedy = "; this process cannot use the GPU any more, start it again" if int(code) in _LASTING else ""
            raise UserError(f"the NVIDIA driver reports {name} from {function}: {text}{remedy}")
        return given[0] if given else None

    def current(self) -> "_Current":
        """A context manager that makes the context this thread's current one, and the one before afterwards."""
        return _Current(self, self._context)

    def mem_get_info(self) -> tuple[int, int]:
        """Bytes that are free on the GPU, whoever has the rest, and all of them."""
        code, free, total = self.module.cuMemGetInfo()
        if code != self.module.CUresult.CUDA_SUCCESS:
            self.call("cuMemGetInfo")  # says why
        return int(free), int(total)

    def mem_alloc(
        self,
        size: int,
        what: str = "working memory",
        remedy: str = "use --save_gpu_memory, fewer --context_frames or a smaller image, or close other programs on it",
    ) -> int:
        """Memory of `size` bytes, at a multiple of 256. Raises UserError, with what it is for and what to do, where
        there is too little."""
        try:
            return int(self.call("cuMemAlloc", max(size, 1)))
        except UserError as problem:
            free, _ = self.mem_get_info()
            raise UserError(
                f"the GPU has no room for another {size / 2**20:.0f} MiB of {what}, {free / 2**20:.0f} MiB are free "
                f"({problem}): {remedy}"
            ) from None

    def mem_free(self, address: int) -> None:
        self.call("cuMemFree", address)

    def mem_host_alloc(self, size: int) -> int:
        """Pinned memory of the host, which copies reach while the host goes on."""
        return int(self.call("cuMemHostAlloc", max(size, 1), 0))

    def mem_free_host(self, address: int) -> None:
        self.call("cuMemFreeHost", address)

    def memcpy_htod(self, address: int, array: np.ndarray, stream: int) -> None:
        """Enqueue the copy of a contiguous array, which must not change until the stream has come there."""
        self.call("cuMemcpyHtoDAsync", address, array.ctypes.data, array.nbytes, stream)

    def memcpy_dtoh(self, array: np.ndarray, address: int, stream: int) -> None:
        """Enqueue the copy into a contiguous array."""
        self.call("cuMemcpyDtoHAsync", array.ctypes.data, address, array.nbytes, stream)

    def memcpy_dtod(self, target: int, source: int, size: int, stream: int) -> None:
        self.call("cuMemcpyDtoDAsync", target, source, size, stream)

    def memset(self, address: int, value: int, size: int, stream: int) -> None:
        """Enqueue the filling of `size` bytes."""
        self.call("cuMemsetD8Async", address, value, size, stream)

    def stream_create(self) -> int:
        """A new stream that does not wait for the legacy default stream."""
        return int(self.call("cuStreamCreate", _NON_BLOCKING))

    def stream_take(self) -> int:
        """The stream that has been idle for longest, or a new one."""
        try:
            return self.idle_streams.popleft()
        except IndexError:
            return self.stream_create()

    def stream_destroy(self, stream: int) -> None:
        self.call("cuStreamDestroy", stream)

    def stream_query(self, stream: int) -> bool:
        """Whether all work of the stream is done. Raises UserError where it failed."""
        return self._query("cuStreamQuery", stream)

    def stream_synchronize(self, stream: int) -> None:
        """Wait until all work of the stream is done. Raises UserError where it failed."""
        self.call("cuStreamSynchronize", stream)

    def stream_wait_event(self, stream: int, event: Any) -> None:
        """What is enqueued from now on waits for the event as last recorded."""
        self.call("cuStreamWaitEvent", stream, event, 0)

    def event_create(self, *, timed: bool = False) -> Any:
        return self.call("cuEventCreate", 0 if timed else _NO_TIMING)

    def event_record(self, event: Any, stream: int) -> None:
        self.call("cuEventRecord", event, stream)

    def event_query(self, event: Any) -> bool:
        """Whether the event as last recorded has happened."""
        return self._query("cuEventQuery", event)

    def event_destroy(self, event: Any) -> None:
        self.call("cuEventDestroy", event)

    def milliseconds(self, stream: int, body: Callable[[], None]) -> float:
        """How long the GPU takes for what `body` enqueues on the stream; waits for it."""
        start, end = self.event_create(timed=True), self.event_create(timed=True)
        try:
            self.event_record(start, stream)
            body()
            self.event_record(end, stream)
            self.stream_synchronize(stream)
            return float(self.call("cuEventElapsedTime", start, end))
        finally:
            self.event_destroy(start)
            self.event_destroy(end)

    def capture(self, stream: int, body: Callable[[], None]) -> Callable[[], None]:
        """Record what `body` enqueues on the stream, without running it; returns what enqueues it again as a whole, and
        need not have the context current."""
        self.call("cuStreamBeginCapture", stream, self.module.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            body()
        except BaseException:
            code, graph = self.module.cuStreamEndCapture(stream)
            if code == self.module.CUresult.CUDA_SUCCESS:
                self.module.cuGraphDestroy(graph)
            raise
        graph = self.call("cuStreamEndCapture", stream)
        try:
            return _Captured(self, self.call("cuGraphInstantiate", graph, 0), stream)
        finally:
            self.call("cuGraphDestroy", graph)

    def _query(self, function: str, of: Any) -> bool:
        (code,) = getattr(self.module, function)(of)
        if code == self.module.CUresult.CUDA_ERROR_NOT_READY:
            return False
        if code != self.module.CUresult.CUDA_SUCCESS:
            self.call(function, of)  # says why
        return True


class _Current:
    """The stretch in which a context is the thread's current one."""

    def __init__(self, driver: Driver, context: Any) -> None:
        self._driver, self._context = driver, context

    def __enter__(self) -> None:
        self._driver.call("cuCtxPushCurrent", self._context)

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._driver.call("cuCtxPopCurrent")


class _Captured:
    """Captured work, freed with the last reference to it."""

    def __init__(self, driver: Driver, executable: Any, stream: int) -> None:
        self._driver, self._executable, self._stream = driver, executable, stream

    def __call__(self) -> None:
        with self._driver.current():
            self._driver.call("cuGraphLaunch", self._executable, self._stream)

    def __del__(self) -> None:
        with contextlib.suppress(UserError), self._driver.current():  # nobody could be told
            self._driver.call("cuGraphExecDestroy", self._executable)


@functools.cache
def driver(gpu: int) -> Driver:
    """The GPU of this number; all of the process share its context, which stays. Raises UserError as `Driver` does."""
    return Driver(gpu)
