"""The inside of a graph as TensorRT computes it: a plan with further outputs, built for the moment."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.driver import driver
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.inside import Inside, Side
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.engines.trt.build import engine_key
from vexpress_trt.engines.trt.builder import Build, BuildOptions, Plan, shared_log
from vexpress_trt.engines.trt.engine import TensorRtEngine
from vexpress_trt.engines.trt.fitting import Here
from vexpress_trt.engines.trt.flavour import TensorRt
from vexpress_trt.engines.trt.interruption import in_thread
from vexpress_trt.engines.trt.parsing import parsed
from vexpress_trt.engines.trt.preflight import check_room, workspace_for
from vexpress_trt.engines.trt.profile import Profile
from vexpress_trt.engines.trt.store import EngineStore
from vexpress_trt.engines.trt.timing_cache import TimingCache

_FIXED = Profile("fixed", {})


class ExposedPlan(Inside):
    """TensorRT or TensorRT-RTX on this machine's GPU: every look builds a plan for the test inputs' sizes, in a folder
    that goes with it. The bundle's own engines are neither used nor touched."""

    def __init__(self, bundle: Bundle, spec: GraphSpec, side: Side, sizes: Mapping[str, int]) -> None:
        """Raises UserError, before anything is built, where there is no GPU for it, TensorRT cannot read the graph,
        memory is short, or the side has a `dtype` other than the graph's."""
        super().__init__(bundle, spec, side, sizes)
        if side.dtype not in (None, spec.precision):
            raise UserError(
                f"{side.kind} computes in the graph's own precision, {spec.precision}, not in {side.dtype}: leave out "
                "the type"
            )
        self._gpu = int(side.backend.partition(":")[2] or 0)
        self._here = Here.of(side.kind, self._gpu)
        with tempfile.TemporaryDirectory(prefix="vexpress-bisect-") as folder, driver(self._gpu).current():
            fixed, described = self.probe.expose((), Path(folder), sizes)
            check_room(fixed, spec.precision, [described])
            self._shapes = known_shapes(self._here.tensorrt, described, fixed.path(spec.path))
        self.tensors = tuple(tensor for tensor in self.all if tensor.name in self._shapes)

    def run(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory(prefix="vexpress-bisect-") as folder:
            bundle, spec = self.probe.expose(names, Path(folder), self.sizes)
            own = self.own_outputs()
            outputs = tuple(tensor if tensor.name in own else self._shaped(tensor) for tensor in spec.outputs)
            spec = replace(spec, outputs=outputs)
            self._build(bundle, spec)
            with TensorRtEngine(bundle, spec, backend=self.side.backend) as engine:
                return self.outputs_of(engine)

    def _shaped(self, tensor: TensorSpec) -> TensorSpec:
        return replace(tensor, shape=self._shapes[tensor.name])

    def _build(self, bundle: Bundle, spec: GraphSpec) -> None:
        """Build the graph and put it where an engine of this bundle, which is only here for it, is looked for."""
        tensorrt, gpu = self._here.tensorrt, driver(self._gpu)
        with gpu.current():
            workspace = workspace_for(None, gpu.mem_get_info()[0])
        options = BuildOptions((self._here.target,) if tensorrt.is_rtx else (), workspace)
        build = Build(tensorrt, timing_cache=None if tensorrt.is_rtx else TimingCache.of(tensorrt, self._gpu))

        def work() -> Plan:
            return build.run(bundle.path(spec.path), spec, _FIXED, options)

        plan = in_thread(work, gpu.current(), build.cancel)
        key = engine_key(bundle, tensorrt, spec, _FIXED, (self._here.target,), options)
        EngineStore(bundle).put(key, memoryview(plan.data), {}, plan.bindings)


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
