"""How much of a GPU's memory a graph will take on a backend, as far as that is known before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from vexpress_trt.engines.backend_name import split_backend
from vexpress_trt.engines.bundle import Bundle, graph_bytes
from vexpress_trt.engines.dtypes import numpy_dtype
from vexpress_trt.engines.manifest import PRECISION_DTYPE
from vexpress_trt.engines.selection import EngineChoice


@dataclass(frozen=True)
class Footprint:
    """Bytes of the weights, and of working memory where it is known.

    `planned`: they are those of an engine that was built; `streamable`: its weights may stay in the host's memory.
    """

    weights: int
    working: int | None = None
    planned: bool = False
    streamable: bool = False


def footprint(bundle: Bundle, choice: EngineChoice, graph: str, sizes: Mapping[str, int]) -> Footprint:
    """That of a graph for symbols of these sizes: TensorRT's plan for them, or the files in the type computed in.

    Raises UserError where the bundle does not have the graph, or no engine of it that runs here.
    """
    spec = bundle.graph(graph, choice.precision)
    if choice.planned:
        from vexpress_trt.engines.trt.fitting import Here, fitting_plans
        from vexpress_trt.engines.trt.working_memory import recorded

        kind, gpu = split_backend(choice.backend)
        for stored, profile in fitting_plans(bundle, Here.of(kind, gpu or 0), spec):
            if profile.takes(sizes):
                about = stored.sidecar
                streamable = "weight_streaming" in about.key.options
                return Footprint(about.plan_size, recorded(about), planned=True, streamable=streamable)
    return Footprint(graph_bytes(bundle, spec) * _itemsize(choice.dtype) // _itemsize(choice.precision))


def _itemsize(precision: str) -> int:
    return numpy_dtype(PRECISION_DTYPE[precision]).itemsize
