"""The inside of a graph as TensorRT computes it: a plan with further outputs, built for the moment."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.driver import driver
from vexpress_trt.engines.inside import Inside, Side
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.engines.trt.builder import shared_log, started
from vexpress_trt.engines.trt.flavour import TensorRt
from vexpress_trt.engines.trt.momentary import Tell, check_momentary, here, momentary_engine
from vexpress_trt.engines.trt.parsing import parsed

if TYPE_CHECKING:
    import onnx


class ExposedPlan(Inside):
    """TensorRT or TensorRT-RTX on this machine's GPU: every look builds a plan for the test inputs' sizes, of a graph
    in memory. The bundle's own engines are neither used nor touched."""

    def __init__(self, bundle: Bundle, spec: GraphSpec, side: Side, sizes: Mapping[str, int], tell: Tell) -> None:
        """`tell` is told where Ctrl-C ends a build.

        Raises UserError, before anything is built, where there is no GPU for it, TensorRT cannot read the graph,
        memory is short, or the side has a `dtype` other than the graph's."""
        super().__init__(bundle, spec, side, sizes)
        check_momentary(bundle, spec, side.backend, side.dtype)
        place, self._tell = here(side.backend), tell
        model, described = self.probe.opened((), sizes)
        with driver(place.gpu).current():
            self._shapes = known_shapes(place.tensorrt, described, bundle.path(spec.path), model)
        self.tensors = tuple(tensor for tensor in self.all if tensor.name in self._shapes)

    def run(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        model, spec = self.probe.opened(names, self.sizes)
        own = self.own_outputs()
        outputs = tuple(tensor if tensor.name in own else self._shaped(tensor) for tensor in spec.outputs)
        spec = replace(spec, outputs=outputs)
        with momentary_engine(self.bundle, spec, self.side.backend, self.sizes, self._tell, model) as engine:
            return self.outputs_of(engine)

    def _shaped(self, tensor: TensorSpec) -> TensorSpec:
        return replace(tensor, shape=self._shapes[tensor.name])


def known_shapes(
    tensorrt: TensorRt, spec: GraphSpec, path: Path, model: "onnx.ModelProto"
) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} of what a graph with inputs of fixed sizes computes, as far as it does not depend on values. Its
    weights lie beside the file at `path`.

    Raises UserError where TensorRT cannot read the graph.
    """
    trt: Any = tensorrt.module
    log = shared_log(trt)
    log.lines.clear()
    network = parsed(tensorrt, started(tensorrt, trt.Builder, log), log, spec, path, model)
    shapes = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        tensor = layer.get_output(0)
        if tensor is not None and min(tensor.shape, default=1) >= 0:
            shapes[tensor.name] = tuple(tensor.shape)
    return shapes
