"""onnxruntime on an NVIDIA GPU, on the device's own buffers and stream: where no TensorRT engine can be had."""

import contextlib
import functools
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from vexpress_trt.engines.backend_name import split_backend
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.cpu import usable_cores
from vexpress_trt.engines.device_engine import DeviceEngine
from vexpress_trt.engines.engine import Engine, out_of_memory
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.onnxruntime_engine import open_session, require_own_precision

log = logging.getLogger("vexpress")

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
_LOADING = threading.Lock()  # a clip loads engines on two threads, which have one standard output
_LIBRARIES = (
    "mostly for lack of the CUDA or cuDNN libraries of its version (`pip install 'onnxruntime-gpu[cuda,cudnn]'`); see "
    "its own message above, or choose --backend torch"
)


class OnnxRuntimeDeviceEngine(Engine, DeviceEngine):
    """A graph on onnxruntime's CUDA provider, in the graph's own precision.

    Inputs given as arrays are copied to the GPU when they are bound. Buffers are read and written in place; runs are
    enqueued on the stream they are given, which a session is made for: the first run on another stream loads the graph
    anew. From clip to clip streams stay the same (`Driver.idle_streams`). There is no capture: onnxruntime's own needs
    its own stream.

    With `gpu_memory` the session's memory, weights included, grows to so many bytes at most.

    FP32 is computed in FP32: the provider's use of TF32 is switched off. The session must have the provider: where
    onnxruntime would go on without it, on the CPU, this says why not.
    """

    keeps_within = True

    def __init__(
        self,
        bundle: Bundle,
        spec: GraphSpec,
        *,
        backend: str = "onnxruntime-cuda",
        threads: int | None = None,
        dtype: str | None = None,
        gpu_memory: int | None = None,
        provider: str = CUDA,
    ) -> None:
        """`gpu_memory`: bytes that the session may take (None: what it wants). `provider` CPU stands for the GPU where
        there is none: buffers are NumPy arrays then.

        Raises UserError where this onnxruntime has no such provider, and for a `dtype` other than the graph's.
        """
        import onnxruntime

        super().__init__(spec)
        require_own_precision(spec, dtype)
        if provider not in onnxruntime.get_available_providers():
            raise UserError(
                f"onnxruntime {onnxruntime.__version__} is built without CUDA: `pip uninstall onnxruntime` and `pip "
                "install 'onnxruntime-gpu[cuda,cudnn]'`, or choose --backend torch"
            )
        if provider == CUDA:
            with _LOADING:
                _load_libraries()
        self.backend = backend
        self._bundle = bundle
        self._threads = threads or usable_cores()
        self._provider = provider
        self._budget = gpu_memory
        self._gpu = split_backend(backend)[1] or 0
        self._place = ("cpu", 0) if provider == CPU else ("cuda", self._gpu)
        self._given: dict[str, Any] = {}  # arrays, as values on the device
        self._buffers: dict[str, Any] = {}
        self._session: Any = None
        self._stream: int | None = None  # what the session enqueues on; None: its own
        self._binding: Any = None
        self._run_options = onnxruntime.RunOptions()
        self._enqueue_options = onnxruntime.RunOptions()
        self._enqueue_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def bind_buffers(self, **buffers: Any) -> None:
        known = {tensor.name for tensor in (*self.spec.inputs, *self.spec.outputs)}
        for name, buffer in buffers.items():
            if name not in known:
                raise ValueError(f"{self.spec.name}: there is no input or output {name!r}")
            self._buffers[name] = buffer
        self._binding = None

    def enqueue(self, stream: int) -> None:
        if self._session is None or self._stream != stream:
            self._open(stream)
        if self._binding is None:
            self._binding = self._bound_buffers()
        self._run(self._binding, self._enqueue_options)

    def capture(self, stream: int, body: Callable[[], None]) -> Callable[[], None]:
        log.warning("%s does not capture %s as a CUDA graph: each call is enqueued anew", self.backend, self.spec.name)
        return body

    def _bind(self, name: str, array: np.ndarray) -> None:
        import onnxruntime

        try:
            self._given[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array, *self._place)
        except Exception as problem:  # the provider is loaded for the first array, before there is a session
            raise out_of_memory(problem, self.spec.name, self._budget) or UserError(
                f"onnxruntime cannot bring {name} of {self.spec.name} to the GPU ({str(problem).splitlines()[0]}), "
                f"{_LIBRARIES}"
            ) from None
        self._binding = None

    def _execute(self, sizes: dict[str, int]) -> dict[str, np.ndarray]:
        if self._session is None:
            self._open(None)
        binding = self._session.io_binding()
        for name, value in self._given.items():
            binding.bind_ortvalue_input(name, value)
        for tensor in self.spec.outputs:
            binding.bind_output(tensor.name, "cpu")
        self._run(binding, self._run_options)
        values = dict(zip((output.name for output in self._session.get_outputs()), binding.get_outputs(), strict=True))
        return {tensor.name: values[tensor.name].numpy() for tensor in self.spec.outputs}

    def _renew(self) -> None:
        self._given.clear()
        self._buffers.clear()
        self._binding = None

    def _release(self) -> None:
        self._renew()
        self._session = self._stream = None

    def _interrupt(self) -> None:
        self._run_options.terminate = self._enqueue_options.terminate = True

    def _open(self, stream: int | None) -> None:
        """A session that enqueues on this stream. Raises UserError where it would run on the CPU instead."""
        self._session = self._binding = None
        options = {}
        if self._provider == CUDA:
            options = {"device_id": str(self._gpu), "cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
            if stream is not None:
                options["user_compute_stream"] = str(stream)
            if self._budget is not None:  # and no more than is asked for, where it would double its memory otherwise
                options |= {"gpu_mem_limit": str(self._budget), "arena_extend_strategy": "kSameAsRequested"}
        session = open_session(self._bundle, self.spec, self._threads, provider=(self._provider, options))
        if session.get_providers()[0] != self._provider:
            raise UserError(
                f"onnxruntime would run {self.spec.name} on the CPU: its CUDA provider does not load here, {_LIBRARIES}"
            )
        self._session, self._stream = session, stream

    def _bound_buffers(self) -> Any:
        binding = self._session.io_binding()
        for tensor in (*self.spec.inputs, *self.spec.outputs):
            output = tensor in self.spec.outputs
            buffer = self._buffers.get(tensor.name)
            if buffer is not None:
                bind = binding.bind_output if output else binding.bind_input
                bind(tensor.name, *self._place, _element(tensor.dtype), buffer.shape, _address(buffer))
            elif not output and tensor.name in self._given:
                binding.bind_ortvalue_input(tensor.name, self._given[tensor.name])
            else:
                raise ValueError(f"{self.spec.name}: {tensor.name} is not bound")
        return binding

    def _run(self, binding: Any, options: Any) -> None:
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as problem:
            raise out_of_memory(problem, self.spec.name, self._budget) or problem from None


@functools.cache
def _load_libraries() -> None:
    """Load CUDA and cuDNN of NVIDIA's Python packages, where the provider does not look for them itself.

    What is missing onnxruntime prints, which must not get into a video or a document on standard output.
    """
    import onnxruntime

    with contextlib.redirect_stdout(sys.stderr):
        onnxruntime.preload_dlls()


def _address(buffer: Any) -> int:
    if isinstance(buffer, np.ndarray):
        return buffer.ctypes.data
    return buffer.__cuda_array_interface__["data"][0]


def _element(dtype: str) -> Any:
    """onnxruntime's name of a type: NumPy's where it has one."""
    if dtype == "bfloat16":
        from onnx import TensorProto

        return TensorProto.BFLOAT16
    return np.dtype(dtype).type
