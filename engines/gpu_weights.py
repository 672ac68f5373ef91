"""How much of a GPU's memory the weights of a graph will take on a backend: known before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.dtypes import numpy_dtype
from vexpress_trt.engines.manifest import PRECISION_DTYPE
from vexpress_trt.engines.selection import EngineChoice


@dataclass(frozen=True)
class GpuWeights:
    """Bytes. `exact`: they are those of an engine that was built; `streamable`: they may stay in the host's memory."""

    size: int
    exact: bool = False
    streamable: bool = False


def gpu_weights(bundle: Bundle, choice: EngineChoice, graph: str, sizes: Mapping[str, int]) -> GpuWeights:
    """Those of a graph for symbols of these sizes: TensorRT's plan for them, or the files in the type computed in.

    Raises UserError where the bundle does not have the graph, or no engine of it that runs here.
    """
    spec = bundle.graph(graph, choice.precision)
    if choice.planned:
        from vexpress_trt.engines.trt.fitting import Here, fitting_plans

        name, _, index = choice.backend.partition(":")
        for stored, profile in fitting_plans(bundle, Here.of(name, int(index or 0)), spec):
            if profile.takes(sizes):
                return GpuWeights(stored.sidecar.plan_size, True, "weight_streaming" in stored.sidecar.key.options)
    files = sum(bundle.manifest.files[file].size for file in spec.files)
    return GpuWeights(files * _itemsize(choice.dtype) // _itemsize(choice.precision))


def _itemsize(precision: str) -> int:
    return numpy_dtype(PRECISION_DTYPE[precision]).itemsize
