"""The inside of a graph as TensorRT computes it: a plan with further outputs, built for the moment."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.driver import driver
from vexpress_trt.engines.inside import Inside, Side
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.engines.trt.builder import shared_log
from vexpress_trt.engines.trt.flavour import TensorRt
from vexpress_trt.engines.trt.momentary import check_momentary, here, momentary_engine
from vexpress_trt.engines.trt.parsing import parsed


class ExposedPlan(Inside):
    """TensorRT or TensorRT-RTX on this machine's GPU: every look builds a plan for the test inputs' sizes, in a folder
    that goes with it, but for a second Ctrl-C while the builder works: that leaves it. The bundle's own engines are
    neither used nor touched."""

    def __init__(self, bundle: Bundle, spec: GraphSpec, side: Side, sizes: Mapping[str, int]) -> None:
        """Raises UserError, before anything is built, where there is no GPU for it, TensorRT cannot read the graph,
        memory is short, or the side has a `dtype` other than the graph's."""
        super().__init__(bundle, spec, side, sizes)
        check_momentary(bundle, spec, side.backend, side.dtype)
        place = here(side.backend)
        with tempfile.TemporaryDirectory(prefix="vexpress-bisect-") as folder, driver(place.gpu).current():
            fixed, described = self.probe.expose((), Path(folder), sizes)
            self._shapes = known_shapes(place.tensorrt, described, fixed.path(spec.path))
        self.tensors = tuple(tensor for tensor in self.all if tensor.name in self._shapes)

    def run(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory(prefix="vexpress-bisect-") as folder:
            bundle, spec = self.probe.expose(names, Path(folder), self.sizes)
            own = self.own_outputs()
            outputs = tuple(tensor if tensor.name in own else self._shaped(tensor) for tensor in spec.outputs)
            spec = replace(spec, outputs=outputs)
            with momentary_engine(bundle, spec, self.side.backend, self.sizes) as engine:
                return self.outputs_of(engine)

    def _shaped(self, tensor: TensorSpec) -> TensorSpec:
        return replace(tensor, shape=self._shapes[tensor.name])


def known_shapes(tensorrt: TensorRt, spec: GraphSpec, path: Path) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} of what a graph with inputs of fixed sizes computes, as far as it does not depend on values.

    Raises UserError where TensorRT cannot read the graph.
    """
    trt: Any = tensorrt.module
    log = shared_log(trt)
    log.lines.clear()
    network = parsed(tensorrt, trt.Builder(log), log, spec, path)
    shapes = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        tensor = layer.get_output(0)
        if tensor is not None and min(tensor.shape, default=1) >= 0:
            shapes[tensor.name] = tuple(tensor.shape)
    return shapes
