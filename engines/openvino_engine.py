"""Graphs on OpenVINO's CPU plugin, the fast choice on x86: bf16 on AMX where the processor has it."""

import functools
from typing import Any

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.cpu import cpu, usable_cores
from vexpress_trt.engines.engine import Engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec

_ELEMENT_TYPES = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoEngine(Engine):
    """One graph, compiled anew for each set of input shapes: fixed shapes run faster than symbolic ones.

    Inputs are used in place. Outputs lie in the inference request, one set for all runs of the same shapes.
    """

    def __init__(
        self, bundle: Bundle, spec: GraphSpec, *, backend: str, threads: int | None = None, dtype: str | None = None
    ) -> None:
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
        """Bound when executed: the request depends on all shapes."""

    def _execute(self, sizes: dict[str, int]) -> dict[str, np.ndarray]:
        import openvino

        shapes = tuple(self._bound[tensor.name].shape for tensor in self.spec.inputs)
        if shapes != self._shapes:
            self._compile(shapes)
        for tensor in self.spec.inputs:
            self._request.set_tensor(tensor.name, openvino.Tensor(self._bound[tensor.name], shared_memory=True))
        self._request.infer()
        return {tensor.name: self._request.get_tensor(tensor.name).data for tensor in self.spec.outputs}

    def _compile(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        self._request = None  # frees what belongs to the previous shapes first
        self._model.reshape({t.name: list(shape) for t, shape in zip(self.spec.inputs, shapes, strict=True)})
        self._request = _core().compile_model(self._model, "CPU", self._settings).create_infer_request()
        self._shapes = shapes

    def _release(self) -> None:
        self._request = self._model = None


@functools.cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def _settings(dtype: str | None, threads: int | None) -> dict[str, Any]:
    chosen = dtype or ("bf16" if cpu().has_amx_bf16 else "fp32")
    if chosen not in _ELEMENT_TYPES:
        raise UserError(f"openvino computes in fp32 or bf16 on a CPU, not in {chosen}: choose one of these")
    return {
        "INFERENCE_PRECISION_HINT": _ELEMENT_TYPES[chosen],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or usable_cores(),
    }
