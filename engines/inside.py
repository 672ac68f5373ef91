"""What a backend computes inside a graph, whatever it makes of the graph: the sides that `verify --bisect` compares."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vexpress_trt.engines.backend_name import PLANNED, split_backend
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.engine import Engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.intermediates import Probe
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.selection import engine_class
from vexpress_trt.engines.timestep_table import INPUT as TIMESTEP
from vexpress_trt.engines.verify import vector_inputs

_TABULATED = frozenset({TIMESTEP})  # tensors of the timestep alone: openvino has a table in their place


@dataclass(frozen=True)
class Side:
    """One of the two that are compared: `precision` of the graph, `dtype` of the arithmetic; None: the backend's."""

    backend: str
    precision: str | None = None
    dtype: str | None = None

    def __str__(self) -> str:
        return "/".join(filter(None, (self.backend, self.precision, self.dtype)))

    @property
    def kind(self) -> str:
        """The backend without the number of a GPU."""
        return split_backend(self.backend)[0]


class Inside(ABC):
    """One graph on one side, run on its test inputs with symbols of these `sizes`.

    `all` are the floating-point tensors that the graph's nodes compute of its inputs, in the order of the nodes, and
    its outputs of weights alone; `tensors` those of them that this side can give, the graph's outputs among them.
    """

    def __init__(self, bundle: Bundle, spec: GraphSpec, side: Side, sizes: Mapping[str, int]) -> None:
        """Raises UserError where the graph cannot be read."""
        self.bundle, self.spec, self.side, self.sizes = bundle, spec, side, sizes
        self.probe = Probe(bundle, spec)
        own = self.own_outputs()
        self.all = tuple(tensor for tensor in self.probe.tensors if tensor.inputs or tensor.name in own)
        self.tensors = self.all

    @abstractmethod
    def run(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """The graph's outputs and the tensors of these names as float32; those that turn out to be others are left out.

        Raises UserError where the engine cannot be had.
        """

    def own_outputs(self) -> frozenset[str]:
        return frozenset(tensor.name for tensor in self.spec.outputs)

    def outputs_of(self, engine: Engine) -> dict[str, np.ndarray]:
        """All outputs of an engine on the test inputs, as float32 arrays that outlive it."""
        outputs = engine.run(**vector_inputs(engine.spec, self.sizes))
        return {name: np.array(value, np.float32) for name, value in outputs.items()}


class ExposedGraph(Inside):
    """onnxruntime and OpenVINO: the graph is loaded anew with further outputs."""

    def __init__(
        self, bundle: Bundle, spec: GraphSpec, side: Side, sizes: Mapping[str, int], threads: int | None
    ) -> None:
        super().__init__(bundle, spec, side, sizes)
        self._threads = threads
        if side.kind == "openvino":
            self.tensors = tuple(tensor for tensor in self.all if tensor.inputs != _TABULATED)

    def run(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        kind, side = engine_class(self.side.backend), self.side
        with tempfile.TemporaryDirectory(prefix="vexpress-bisect-") as folder:
            try:
                bundle, spec = self.probe.expose(names, Path(folder))
            except OSError as problem:
                reason = (problem.strerror or str(problem)).lower()
                raise UserError(
                    f"cannot write the graph with its weights to {folder}: {reason}; set TMPDIR to a folder on the "
                    f"disk of {self.bundle.root}, where weights are linked and take no space"
                ) from None
            with kind(bundle, spec, backend=side.backend, threads=self._threads, dtype=side.dtype) as engine:
                return self.outputs_of(engine)


def look_inside(
    bundle: Bundle,
    graph: str,
    side: Side,
    sizes: Mapping[str, int],
    threads: int | None,
    tell: Callable[[str], None] = lambda line: None,
) -> Inside:
    """A graph on a side whose backend and precision are chosen. `tell` is told where Ctrl-C ends a build.

    Raises UserError where the graph cannot be had in this precision or be read, or TensorRT cannot build it here.
    """
    spec = bundle.graph(graph, side.precision)
    if side.kind in ("torch", "torch-cuda"):
        from vexpress_trt.engines.torch_probe import TorchModules

        return TorchModules(bundle, spec, side, sizes, threads)
    if side.kind in PLANNED:
        from vexpress_trt.engines.trt.probe import ExposedPlan

        return ExposedPlan(bundle, spec, side, sizes, tell)
    return ExposedGraph(bundle, spec, side, sizes, threads)
