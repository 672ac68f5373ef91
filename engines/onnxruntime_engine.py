"""onnxruntime on the CPU: runs anywhere and is the numeric reference."""

import functools
import logging
from typing import Any

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.cpu import usable_cores
from vexpress_trt.engines.engine import Engine, out_of_memory
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.onnx_files import load_structure

log = logging.getLogger("vexpress")
_CPU = "CPUExecutionProvider"


class OnnxRuntimeEngine(Engine):
    """A graph on onnxruntime's CPU provider, in the graph's own precision (fp32 or fp16).

    Inputs and outputs are bound in place. Output buffers are kept between runs of the same sizes.
    """

    def __init__(
        self,
        bundle: Bundle,
        spec: GraphSpec,
        *,
        backend: str = "onnxruntime",
        threads: int | None = None,
        dtype: str | None = None,
    ):
        """Raises UserError for a bf16 graph, for a `dtype` other than the graph's, and when the graph does not load."""
        import onnxruntime

        super().__init__(spec)
        self.backend = backend
        self._run_options = onnxruntime.RunOptions()
        _check_precision(bundle, spec, dtype)
        self._session = open_session(bundle, spec, threads or usable_cores())
        self._binding = self._session.io_binding()
        self._buffers: dict[str, np.ndarray] = {}

    def _bind(self, name: str, array: np.ndarray) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

    def _execute(self, sizes: dict[str, int]) -> dict[str, np.ndarray]:
        free = [tensor.name for tensor in self.spec.outputs if not self._bind_output(tensor.name, sizes)]
        try:
            self._session.run_with_iobinding(self._binding, self._run_options)
        except Exception as problem:
            raise out_of_memory(problem, self.spec.name) or problem from None
        outputs = dict(self._buffers)
        if free:
            values = zip(self._binding.get_outputs(), self._session.get_outputs(), strict=True)
            outputs |= {output.name: value.numpy() for value, output in values if output.name in free}
        return {tensor.name: outputs[tensor.name] for tensor in self.spec.outputs}

    def _release(self) -> None:
        self._buffers.clear()
        self._binding = self._session = None

    def _interrupt(self) -> None:
        self._run_options.terminate = True

    def _bind_output(self, name: str, sizes: dict[str, int]) -> bool:
        """Bind the output to a buffer of ours; False where its shape is only known after the run."""
        tensor = next(tensor for tensor in self.spec.outputs if tensor.name == name)
        shape = self.output_shape(tensor, sizes)
        if shape is None:
            self._binding.bind_output(name, "cpu")
            return False
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != shape:
            buffer = self._buffers[name] = np.empty(shape, tensor.dtype)
            self._binding.bind_output(name, "cpu", 0, buffer.dtype.type, shape, buffer.ctypes.data)
        return True


def _check_precision(bundle: Bundle, spec: GraphSpec, dtype: str | None) -> None:
    if spec.precision == "bf16":
        raise UserError(
            f"onnxruntime cannot run {spec.name} in bf16 on a CPU: choose fp32, or the openvino or torch backend"
        )
    require_own_precision(spec, dtype)
    if spec.precision == "fp16":
        _advise_fp32(str(bundle.root))


def require_own_precision(spec: GraphSpec, dtype: str | None) -> None:
    """Raise UserError for a type other than the graph's."""
    if dtype not in (None, spec.precision):
        raise UserError(
            f"onnxruntime computes in the graph's own precision, {spec.precision}, not in {dtype}: "
            "leave out the type, or choose the openvino or torch backend"
        )


@functools.cache
def _advise_fp32(bundle: str) -> None:
    log.warning("%s: onnxruntime is slower in fp16 than in fp32 on a CPU; export fp32 as well", bundle)


def open_session(
    bundle: Bundle, spec: GraphSpec, threads: int, *, provider: tuple[str, dict[str, str]] = (_CPU, {})
) -> Any:
    """An InferenceSession of a graph, as adapted to onnxruntime's kernels, on a provider with options.

    Raises UserError when the graph does not load.
    """
    import onnxruntime

    from vexpress_trt.engines.attention_rewrite import rewrite_attention
    from vexpress_trt.engines.group_norm_rewrite import rewrite_group_norm

    model = load_structure(bundle, spec)
    # The CPU's kernel of MultiHeadAttention exists in float32 only.
    rewrite_attention(model, compute_float32=spec.precision == "fp16" and provider[0] == _CPU)
    rewrite_group_norm(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    # A memory pattern is planned per set of input sizes and its block comes on top of the arena: twice the memory for
    # the denoiser (5.5 against 2.8 GB at 24 guided frames of 64x64 latents), and no faster.
    options.enable_mem_pattern = False
    # Threads that wait for work sleep: spinning takes a busy machine's cores, and on two quiet ones was no faster.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The rewritten graph is handed over in memory; its weights are mapped from where they lie, whatever their size.
    folder = str(bundle.path(spec.path).parent.resolve())
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[provider])
    except Exception as problem:
        allowed = provider[1].get("gpu_mem_limit")
        raise out_of_memory(problem, spec.name, allowed and int(allowed)) or UserError(
            f"onnxruntime {onnxruntime.__version__} cannot load {bundle.path(spec.path)} "
            f"({str(problem).splitlines()[0]}): update onnxruntime or export the bundle again"
        ) from None
