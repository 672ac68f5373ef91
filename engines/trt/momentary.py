"""Plans of the moment: built on this machine's GPU for the sizes of a graph's test inputs, run and thrown away."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vexpress_trt.engines.backend_name import split_backend
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.driver import driver
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.trt.build import engine_key
from vexpress_trt.engines.trt.builder import Build, BuildOptions, Plan
from vexpress_trt.engines.trt.engine import TensorRtEngine, check_dtype
from vexpress_trt.engines.trt.fitting import Here, fitting_plans
from vexpress_trt.engines.trt.interruption import run_build
from vexpress_trt.engines.trt.preflight import check_room, workspace_for
from vexpress_trt.engines.trt.profile import Profile, symbols_of
from vexpress_trt.engines.trt.store import EngineStore
from vexpress_trt.engines.trt.timing_cache import TimingCache

if TYPE_CHECKING:
    import onnx

Tell = Callable[[str], None]


def here(backend: str) -> Here:
    """What "tensorrt", or "tensorrt-rtx:1" on the second GPU, is here. Raises UserError where it cannot be used."""
    kind, gpu = split_backend(backend)
    return Here.of(kind, gpu or 0)


def is_stored(bundle: Bundle, spec: GraphSpec, backend: str, sizes: Mapping[str, int]) -> bool:
    """Whether the bundle has an engine of a graph that runs here with symbols of these sizes."""
    place = here(backend)
    try:
        return bool(fitting_plans(bundle, place, spec, sizes))
    except UserError:
        return False


def check_momentary(bundle: Bundle, spec: GraphSpec, backend: str, dtype: str | None = None) -> None:
    """Refuse a plan of the moment before it is built. Raises UserError where there is no GPU for it, memory or disk
    are short, or for a `dtype` other than the graph's."""
    check_dtype(here(backend).tensorrt.backend, spec, dtype)
    check_room(bundle, spec.precision, [spec], Path(tempfile.gettempdir()))


@contextmanager
def momentary_engine(
    bundle: Bundle,
    spec: GraphSpec,
    backend: str,
    sizes: Mapping[str, int],
    tell: Tell = lambda line: None,
    model: "onnx.ModelProto | None" = None,
) -> Iterator[TensorRtEngine]:
    """An engine of a graph for symbols of these sizes alone. Nothing is written to the bundle, and no file is made here
    before the plan is built, so Ctrl-C leaves none: the first one ends the builder at its next step, which `tell` is
    told, a second one everything at once.

    `model`: the graph that `spec` describes (None: the one in the bundle), with the weights of the bundle's.

    Raises UserError where the plan cannot be built or loaded.
    """
    place = here(backend)
    profile, targets = fixed_profile(spec, sizes), (place.target,)
    options = BuildOptions(targets if place.tensorrt.is_rtx else ())
    plan = _built(bundle, spec, place, profile, options, tell, model)
    with tempfile.TemporaryDirectory(prefix="vexpress-plan-") as folder:
        own = replace(bundle, root=Path(folder))
        key = engine_key(bundle, place.tensorrt, spec, profile, targets, options)
        EngineStore(own).put(key, memoryview(plan.data), {}, plan.bindings)
        del plan  # gigabytes, which lie in the file now
        with TensorRtEngine(own, spec, backend=backend) as engine:
            yield engine


def fixed_profile(spec: GraphSpec, sizes: Mapping[str, int]) -> Profile:
    """The profile of one size for every symbol of a graph."""
    return Profile.parse("_".join(f"{symbol}{sizes[symbol]}" for symbol in symbols_of(spec)) or "fixed")


def _built(
    bundle: Bundle,
    spec: GraphSpec,
    place: Here,
    profile: Profile,
    options: BuildOptions,
    tell: Tell,
    model: "onnx.ModelProto | None",
) -> Plan:
    tensorrt, gpu = place.tensorrt, driver(place.gpu)
    with gpu.current():
        options = replace(options, workspace=workspace_for(None, gpu.mem_get_info()[0]))
    timings = None if tensorrt.is_rtx else TimingCache.of(tensorrt, place.gpu)
    build, path = Build(tensorrt, timing_cache=timings), bundle.path(spec.path)
    return run_build(build, path, spec, profile, options, gpu.current(), tell, model)
