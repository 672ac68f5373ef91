"""Graphs on OpenVINO's CPU plugin, the fast choice on x86: bf16 on AMX where the processor has it."""

import functools
from typing import Any

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.cpu import cpu, usable_cores
from vexpress_trt.engines.engine import Engine, out_of_memory
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec

_ELEMENT_TYPES = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine(Engine):
    """One graph, compiled anew when the input shapes change: fixed shapes run up to a third faster than symbolic ones.

    Only the last shapes are kept compiled, since each set has its own copy of weights and intermediate values. Inputs
    are used in place, except read-only arrays, which openvino refuses. Outputs lie in the inference request.
    """

    def __init__(
        self, bundle: Bundle, spec: GraphSpec, *, backend: str, threads: int | None = None, dtype: str | None = None
    ) -> None:
        """Raises UserError for a `dtype` that openvino does not compute in, and when the graph cannot be read."""
        super().__init__(spec)
        self.backend = backend
        self._settings = _settings(dtype, threads)
        try:
            self._model = _core().read_model(str(bundle.path(spec.path)))
        except RuntimeError as problem:
            raise UserError(
                f"openvino cannot read {bundle.path(spec.path)} ({str(problem).splitlines()[-1]}): update openvino or "
                "choose --backend onnxruntime"
            ) from None
        self._shapes: tuple[tuple[int, ...], ...] | None = None
        self._request: Any = None

    def _bind(self, name: str, array: np.ndarray) -> None:
        """Goes to the request when executed, since that depends on all shapes; until then the array is kept alive."""
        if not array.flags.writeable:
            self._bound[name] = array.copy()

    def _execute(self, sizes: dict[str, int]) -> dict[str, np.ndarray]:
        shapes = tuple(self._bound[tensor.name].shape for tensor in self.spec.inputs)
        try:
            if shapes != self._shapes:
                self._compile(shapes)
            for tensor in self.spec.inputs:
                self._request.set_tensor(tensor.name, _shared(self._bound[tensor.name]))
            self._request.infer()
        except RuntimeError as problem:
            raise out_of_memory(problem, self.spec.name) or problem from None
        return {tensor.name: _array(self._request.get_tensor(tensor.name)) for tensor in self.spec.outputs}

    def _compile(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        self._request = self._shapes = None  # frees what belongs to the previous shapes first
        self._model.reshape({t.name: list(shape) for t, shape in zip(self.spec.inputs, shapes, strict=True)})
        self._request = _core().compile_model(self._model, "CPU", self._settings).create_infer_request()
        self._shapes = shapes

    def _release(self) -> None:
        self._request = self._model = None


@functools.cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def _shared(array: np.ndarray) -> Any:
    """An openvino tensor on the array's memory, which it does not keep alive."""
    import openvino

    if array.dtype.name == "bfloat16":  # openvino does not know NumPy's type for it
        return openvino.Tensor(array.view(np.uint16), openvino.Shape(array.shape), openvino.Type.bf16)
    return openvino.Tensor(array, shared_memory=True)


def _array(tensor: Any) -> np.ndarray:
    """The tensor's memory as an array; openvino shows bf16 as two bytes of another type."""
    if tensor.element_type.get_type_name() != "bf16":
        return tensor.data
    import ml_dtypes

    return tensor.data.view(ml_dtypes.bfloat16)


def _settings(dtype: str | None, threads: int | None) -> dict[str, Any]:
    chosen = dtype or ("bf16" if cpu().has_amx_bf16 else "fp32")
    if chosen not in _ELEMENT_TYPES:
        raise UserError(f"openvino computes in fp32 or bf16 on a CPU, not in {chosen}: choose one of these")
    return {
        "INFERENCE_PRECISION_HINT": _ELEMENT_TYPES[chosen],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or usable_cores(),
    }
