"""How long an engine takes on the GPU: to keep the fastest of several builds."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.driver import Driver, driver
from vexpress_trt.engines.dtypes import numpy_dtype
from vexpress_trt.engines.files import temporary_beside
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.trt.builder import Plan
from vexpress_trt.engines.trt.flavour import TensorRt
from vexpress_trt.engines.trt.key import SIDECAR_VERSION, EngineKey, Sidecar
from vexpress_trt.engines.trt.loaded_plan import LoadedPlan
from vexpress_trt.engines.trt.profile import Profile
from vexpress_trt.engines.trt.store import EngineStore, StoredEngine
from vexpress_trt.engines.verify import vector_inputs

_WARM_UPS, _RUNS = 3, 20


@dataclass(frozen=True)
class TimedPlan:
    """A plan, the median milliseconds of a run at its best sizes, and the bytes of working memory it asks for at its
    largest."""

    plan: Plan
    milliseconds: float
    working: int


def fastest_of(
    builds: int,
    build: Callable[[], Plan],
    bundle: Bundle,
    tensorrt: TensorRt,
    spec: GraphSpec,
    profile: Profile,
    key: EngineKey,
    gpu_id: int,
) -> tuple[TimedPlan, list[float]]:
    """Build so many times; the fastest plan, and every plan's milliseconds.

    Raises UserError where the GPU cannot be used or has no room.
    """
    best, times = None, []
    for _ in range(builds):
        timed = time_plan(build(), bundle, tensorrt, spec, profile, key, driver(gpu_id))
        times.append(timed.milliseconds)
        if timed.milliseconds == min(times):
            best = timed
    return best, times


def time_plan(
    plan: Plan, bundle: Bundle, tensorrt: TensorRt, spec: GraphSpec, profile: Profile, key: EngineKey, gpu: Driver
) -> TimedPlan:
    """Load a plan on the GPU and run it at the profile's best sizes; who calls holds the lock of the engine's place."""
    sizes = {symbol: own.best for symbol, own in profile.ranges.items()}
    taken: list[int] = []

    def allocate(size: int) -> int:
        taken.append(gpu.mem_alloc(size))
        return taken[-1]

    with temporary_beside(EngineStore(bundle).plan_path(key)) as path, gpu.current():
        path.write_bytes(memoryview(plan.data))
        sidecar = Sidecar(SIDECAR_VERSION, key, "", 0, plan.bindings, {})
        stream = gpu.stream_create()
        loaded = None
        try:
            loaded = LoadedPlan(tensorrt, StoredEngine(path, sidecar, ""), spec)
            for name, array in vector_inputs(spec, sizes).items():
                address = allocate(array.nbytes)
                gpu.memcpy_htod(address, np.ascontiguousarray(array), stream)
                loaded.set_shape(name, array.shape)
                loaded.bind(name, address)
                gpu.stream_synchronize(stream)
            for tensor in spec.outputs:
                count = int(np.prod(loaded.output_shape(tensor.name)))
                loaded.bind(tensor.name, allocate(count * numpy_dtype(tensor.dtype).itemsize))
            size = loaded.scratch_size()
            loaded.use_scratch(allocate(size), size)
            for _ in range(_WARM_UPS):
                loaded.enqueue(stream)
            times = [gpu.milliseconds(stream, lambda: loaded.enqueue(stream)) for _ in range(_RUNS)]
            return TimedPlan(plan, median(times), loaded.working)
        finally:
            gpu.stream_synchronize(stream)
            if loaded is not None:
                loaded.close()
            for address in taken:
                gpu.mem_free(address)
            gpu.stream_destroy(stream)
