"""OpenVINO's CPU plugin: the fast choice on x86, in bf16 where the processor multiplies that (AMX, AVX-512)."""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.cpu import cpu, usable_cores
from vexpress_trt.engines.engine import CancelledError, Engine, out_of_memory
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.onnx_files import load_structure
from vexpress_trt.engines.timestep_table import INPUT as TIMESTEP
from vexpress_trt.engines.timestep_table import tabulate_timestep

_ELEMENT_TYPES = {"fp32": "f32", "bf16": "bf16"}
_PRECISION = "INFERENCE_PRECISION_HINT"

Shapes = tuple[tuple[int, ...], ...]


class OpenVinoEngine(Engine):
    """A graph of any precision, computed in fp32 or bf16.

    The first input shapes get a model compiled for them, which runs up to a third faster; all other shapes share one
    with symbolic sizes, because compiling takes seconds. Inputs are used in place, except read-only arrays, which
    openvino refuses; outputs lie in the inference request. In bf16 timesteps must be whole (see `timestep_table`).
    """

    def __init__(
        self,
        bundle: Bundle,
        spec: GraphSpec,
        *,
        backend: str = "openvino",
        threads: int | None = None,
        dtype: str | None = None,
    ) -> None:
        """`dtype` "fp32" or "bf16"; None takes bf16 where the processor multiplies it.

        Raises UserError for another `dtype` and when the graph cannot be read.
        """
        super().__init__(spec)
        self.backend = backend
        self._settings = _settings(dtype, threads)
        self._file = bundle.path(spec.path)
        load_structure(bundle, spec)  # refuses weights outside the bundle, which openvino would read
        self._model = self._attempt("read", lambda: _core().read_model(str(self._file)))
        self._timesteps = bundle.manifest.scheduler.num_train_timesteps
        self._whole_timestep = self._settings[_PRECISION] != "f32" and self._attempt(
            "change", lambda: tabulate_timestep(_core(), self._model, self._timesteps)
        )
        self._first_shapes: Shapes | None = None
        self._first_known = False
        self._first_request: Any = None
        self._other_request: Any = None

    def _bind(self, name: str, array: np.ndarray) -> None:
        """Only keeps it: which request it goes to depends on the shapes of all inputs."""
        if not array.flags.writeable:
            self._bound[name] = array.copy()

    def _prepare(self, shapes: Shapes) -> None:
        self._request(shapes)

    def _execute(self, sizes: dict[str, int]) -> dict[str, np.ndarray]:
        request = self._request(tuple(self._bound[tensor.name].shape for tensor in self.spec.inputs))
        inputs = {**self._bound, TIMESTEP: self._whole(self._bound[TIMESTEP])} if self._whole_timestep else self._bound
        for tensor in self.spec.inputs:
            request.set_tensor(tensor.name, _shared(inputs[tensor.name]))
        if self._cancelled:  # while it was compiled: what is not begun cannot be broken off
            raise CancelledError(f"{self.spec.name} was cancelled")
        self._attempt("run", lambda: _infer(request))
        return {tensor.name: _array(request.get_tensor(tensor.name)) for tensor in self.spec.outputs}

    def _whole(self, timestep: np.ndarray) -> np.ndarray:
        """The timestep int32 [B], as a place in the table."""
        if not ((timestep >= 0) & (timestep < self._timesteps)).all() or (timestep % 1).any():
            raise ValueError(f"{self.spec.name}: {TIMESTEP} must be whole and from 0 to {self._timesteps - 1} in bf16")
        return timestep.astype(np.int32)

    def _renew(self) -> None:
        self._first_known = False  # what is compiled stays, for the case that the first shapes are the same again

    def _interrupt(self) -> None:
        for request in (self._first_request, self._other_request):
            if request is not None:
                request.cancel()

    def _release(self) -> None:
        self._first_request = self._other_request = self._model = None

    def _request(self, shapes: Shapes) -> Any:
        if not self._first_known and shapes != self._first_shapes:
            fixed = self._model.clone()
            fixed.reshape({tensor.name: list(shape) for tensor, shape in zip(self.spec.inputs, shapes, strict=True)})
            self._first_request = self._compile(fixed)
            self._first_shapes = shapes
        self._first_known = True
        if shapes == self._first_shapes:
            return self._first_request
        if self._other_request is None:
            self._other_request = self._compile(self._model)
        return self._other_request

    def _compile(self, model: Any) -> Any:
        return self._attempt(
            "compile", lambda: _core().compile_model(model, "CPU", self._settings).create_infer_request()
        )

    def _attempt(self, action: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as problem:
            lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
            reason = lines[-1] if lines else "no reason given"  # the lines before name openvino's source files
            raise out_of_memory(problem, self.spec.name) or UserError(
                f"openvino cannot {action} {self._file} ({reason}): update openvino or choose --backend onnxruntime"
            ) from None


def _infer(request: Any) -> None:
    """Run and wait. Not `infer`, which `cancel` does not reach."""
    request.start_async()
    request.wait()


@functools.cache
def _core() -> Any:
    # oneDNN remembers what it compiled for every shape for the life of the process, megabytes for each: a service or a
    # long clip would grow. Engines keep their own for as long as they live, so nothing is compiled twice for it.
    os.environ.setdefault("DNNL_PRIMITIVE_CACHE_CAPACITY", "0")
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
    chosen = dtype or cpu().fastest_dtype
    if chosen not in _ELEMENT_TYPES:
        raise UserError(f"openvino computes in fp32 or bf16 on a CPU, not in {chosen}: choose one of these")
    return {
        _PRECISION: _ELEMENT_TYPES[chosen],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or usable_cores(),
    }
