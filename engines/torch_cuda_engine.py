"""torch on a GPU's own buffers: enqueued on a stream that is not torch's, or captured there as part of a CUDA graph."""

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np

from vexpress_trt.engines.device_engine import DeviceEngine
from vexpress_trt.engines.engine import out_of_memory
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import TensorSpec
from vexpress_trt.engines.torch_engine import TorchEngine, device_of, to_torch

if TYPE_CHECKING:
    import torch

log = logging.getLogger("vexpress")
_attention_switch = threading.Lock()


@contextmanager
def _without_plans_of_attention() -> Iterator[None]:
    """Let torch compute attention without cuDNN, for which it would make a plan for every length, and keep it for good.

    torch's switch is the whole process's: only one thread at a time is in here, and what others run or capture then
    does without cuDNN's attention as well, with another rounding.
    """
    from torch.backends import cuda

    with _attention_switch:
        before = cuda.cudnn_sdp_enabled()
        cuda.enable_cudnn_sdp(False)
        try:
            yield
        finally:
            cuda.enable_cudnn_sdp(before)


class GraphMemory:
    """torch's memory for graphs that were captured on one stream: they never run at once and use the same bytes.

    Each graph computes from the buffers that are bound, and copies what it computes to some: nothing in this memory is
    needed from one run to the next, so they may be replayed in any order. Every graph holds a reference; with the last
    one torch frees the memory and takes its handle no more.
    """

    def __init__(self) -> None:
        import torch

        self.handle = torch.cuda.graph_pool_handle()

    @classmethod
    def of_stream(cls, device: str, stream: int) -> "GraphMemory":
        """That of the graphs that exist on a stream of a device such as "cuda:0", or a new one."""
        streams = _graph_memory(device)
        memory = streams.get(stream) or cls()
        streams[stream] = memory
        return memory

    def give_up(self, device: str) -> None:
        """After a capture that failed: torch before 2.12 leaves its allocator as in a capture where CUDA cannot end one
        (pytorch/pytorch#180395), and whoever gives memory back from then on fails."""
        import torch

        index = torch.device(device).index
        try:
            torch._C._cuda_endAllocateToPool(index, self.handle)
        except RuntimeError:  # torch has done so itself
            return
        torch._C._cuda_releasePool(index, self.handle)


@functools.cache
def _graph_memory(device: str) -> WeakValueDictionary[int, GraphMemory]:
    """{stream: what its graphs share}"""
    return WeakValueDictionary()


class TorchDeviceEngine(TorchEngine, DeviceEngine):
    """`TorchEngine` that also runs on buffers of its device, without a copy.

    On the CPU buffers are NumPy arrays, runs are done when they are enqueued, and there is nothing to capture.
    FP32 is computed in FP32: torch's use of TF32 for convolutions is switched off, for the whole process.
    On a GPU a denoiser takes its fused form (`FusedDenoiser`), whose kernels Triton compiles at the first run; where
    there is no Triton, or none that works, a warning says why and the denoiser stays as it is.
    """

    def __init__(self, *given: Any, fused: bool | None = None, **named: Any) -> None:
        """As `TorchEngine`; `fused`: whether a denoiser takes its fused form, which is slow without the kernels. None:
        where they are."""
        super().__init__(*given, **named)
        self._outputs: dict[str, Any] = {}
        self._of_any_length = any("S" in tensor.shape for tensor in self.spec.inputs)  # speech
        self._fuse(fused)
        if self._device != "cpu":
            import torch

            if self._dtype == torch.float32:
                torch.backends.cuda.matmul.allow_tf32 = False
                torch.backends.cudnn.allow_tf32 = False
            self._arrived()

    def bind_buffers(self, **buffers: Any) -> None:
        outputs = {tensor.name for tensor in self.spec.outputs}
        for name, buffer in buffers.items():
            if name not in self._inputs and name not in outputs:
                raise ValueError(f"{self.spec.name}: there is no input or output {name!r}")
            (self._outputs if name in outputs else self._tensors)[name] = self._tensor_on(buffer)

    def enqueue(self, stream: int) -> None:
        with self._current(stream):
            self._results(lambda tensor, result: self._outputs[tensor.name].copy_(result))

    def capture(self, stream: int, body: Callable[[], None]) -> Callable[[], None]:
        if self._device == "cpu":
            return body
        import torch

        graph, memory = torch.cuda.CUDAGraph(), GraphMemory.of_stream(self._device, stream)
        own = torch.cuda.ExternalStream(stream, device=self._device)
        try:
            with (
                self._current(stream),
                torch.cuda.graph(graph, pool=memory.handle, stream=own, capture_error_mode="thread_local"),
            ):
                body()
        except RuntimeError as problem:
            memory.give_up(self._device)
            raise out_of_memory(problem, self.spec.name) or UserError(
                f"torch cannot capture {self.spec.name} as a CUDA graph ({problem}): run it without a capture"
            ) from problem

        return _Captured(graph, memory, lambda: self._current(stream))

    def _fuse(self, wanted: bool | None) -> None:
        import torch

        from vexpress_trt.export.nets.denoiser import Denoiser
        from vexpress_trt.export.nets.fused.denoiser import FusedDenoiser
        from vexpress_trt.export.nets.fused.operations import why_plain

        if type(self._module) is not Denoiser:  # the plain form, a subclass, has no fused one
            return
        if wanted is None and self._device != "cpu":
            reason = why_plain(torch.device(self._device))
            wanted = reason is None
            if reason:
                log.warning("%s runs without fused kernels, and slower: %s", self.spec.name, reason)
        if not wanted:
            return
        try:
            self._module = FusedDenoiser(self._module)
        except RuntimeError as problem:
            raise out_of_memory(problem, self.spec.name) or problem from None

    def _bind(self, name: str, array: np.ndarray) -> None:
        super()._bind(name, array)
        self._arrived()

    def _renew(self) -> None:
        self._outputs.clear()
        super()._renew()

    def _release(self) -> None:
        self._outputs.clear()
        super()._release()

    def _results(self, taken: "Callable[[TensorSpec, torch.Tensor], Any]") -> list[Any]:
        with _without_plans_of_attention() if self._of_any_length else nullcontext():
            return super()._results(taken)

    def _tensor_on(self, buffer: Any) -> "torch.Tensor":
        """The buffer's memory as a tensor."""
        if isinstance(buffer, np.ndarray):
            return to_torch(buffer)
        import torch

        if isinstance(buffer, torch.Tensor):
            return buffer
        with torch.cuda.device(self._device):
            raw = torch.as_tensor(buffer, device=self._device)
        return raw.view(getattr(torch, buffer.dtype.name)).view(buffer.shape)

    def _arrived(self) -> None:
        """Wait until copies and conversions, made on torch's own stream, are done: other streams do not wait for it."""
        if self._device != "cpu":
            import torch

            torch.cuda.current_stream(self._device).synchronize()

    @contextmanager
    def _current(self, stream: int) -> Iterator[None]:
        """Make a stream and its GPU the current ones of this thread."""
        if self._device == "cpu":
            yield
            return
        import torch

        with torch.cuda.device(self._device), torch.cuda.stream(torch.cuda.ExternalStream(stream, device=self._device)):
            yield


class _Captured:
    """Captured work, and the memory that it shares with other such."""

    def __init__(
        self, graph: "torch.cuda.CUDAGraph", memory: GraphMemory, current: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._graph, self._memory, self._current = graph, memory, current

    def __call__(self) -> None:
        with self._current():
            self._graph.replay()


def limit_memory(backend: str, size: int | None) -> None:
    """Let torch take up to `size` bytes on the GPU of a backend's name, all of it for None; beyond that it says that
    memory is short. Holds for the whole process."""
    import torch

    device = torch.device(device_of(backend))
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if size is None else min(1.0, max(0, size) / total), device)
