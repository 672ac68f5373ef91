"""`vexpress build`: all graphs of a bundle in one precision become engines, each built once."""

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from vexpress_trt.engines.bundle import Bundle, graph_bytes
from vexpress_trt.engines.driver import Driver, driver
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.memory import peak_memory_mib, reset_peak
from vexpress_trt.engines.trt.builder import Build, BuildOptions, Plan, Progress, check_options
from vexpress_trt.engines.trt.fitting import FASTEST_FIRST
from vexpress_trt.engines.trt.flavour import TensorRt, load_tensorrt
from vexpress_trt.engines.trt.foresight import least_working_memory
from vexpress_trt.engines.trt.interruption import run_build
from vexpress_trt.engines.trt.key import EngineKey
from vexpress_trt.engines.trt.preflight import check_room, check_working_memory, targets_here, workspace_for
from vexpress_trt.engines.trt.profile import Profile, ProfileSettings
from vexpress_trt.engines.trt.report import BuildReport, BuiltEngine
from vexpress_trt.engines.trt.store import EngineStore, graph_hash
from vexpress_trt.engines.trt.timing_cache import TimingCache
from vexpress_trt.engines.trt.working_memory import RECORD, measured

_WORKSPACE = "workspace"


@dataclass(frozen=True)
class BuildSettings:
    """What to build; None takes the bundle's default. `graphs`: only these (None: all).

    `gpu_id`: the GPU to build on and for, not with targets (None: the first).

    `timing_cache`: a folder for what full TensorRT measures (None: in the user's cache folder).
    """

    bundle: Path
    backend: str = "tensorrt-rtx"
    precision: str | None = None
    graphs: tuple[str, ...] | None = None
    gpu_id: int | None = None
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    options: BuildOptions = field(default_factory=BuildOptions)
    force: bool = False
    builds: int = 1
    timing_cache: Path | None = None


@dataclass(frozen=True)
class BuildEvent:
    """Where a build is: graph `number` of `count`, a phase of the builder, the share of the graph that is done, and the
    seconds that all graphs will still take (None while nothing is known)."""

    graph: str
    number: int
    count: int
    phase: str
    share: float
    remaining: float | None


@dataclass(frozen=True)
class _Wanted:
    """One engine to be there at the end."""

    spec: GraphSpec
    profile: Profile
    key: EngineKey


def build_engines(
    settings: BuildSettings, on_progress: Callable[[BuildEvent], None] = lambda event: None
) -> BuildReport:
    """Build what is missing. Raises UserError, naming the remedy, for what cannot be built here, as far as it can be
    known before anything is built.

    An engine appears whole or not at all; Ctrl-C ends the builder at its next step. A process that finds another one
    building the same engine waits for it and takes what it made.
    """
    bundle = Bundle.open(settings.bundle)
    settings.profile.check(bundle.manifest.model)
    tensorrt = load_tensorrt(settings.backend)
    check_options(tensorrt, settings.options)
    check_builds(tensorrt, settings)
    targets, gpu = _place(tensorrt, settings)
    precision = settings.precision or next((p for p in FASTEST_FIRST if p in bundle.precisions), bundle.precisions[0])
    wanted = []
    for spec in _graphs(bundle, precision, settings.graphs):
        profile = settings.profile.of(spec, bundle.manifest.model)
        wanted.append(_Wanted(spec, profile, engine_key(bundle, tensorrt, spec, profile, targets, settings.options)))
    store = EngineStore(bundle)
    missing = [one for one in wanted if settings.force or not store.seems_there(one.key)]
    workspace = _foresee(bundle, tensorrt, precision, missing, settings.options.workspace, gpu)
    options = replace(settings.options, workspace=workspace, targets=targets if tensorrt.is_rtx else ())
    maker = _Maker(settings, bundle, tensorrt, options, gpu)
    clock = _Clock([graph_bytes(bundle, one.spec) for one in wanted])
    built: list[BuiltEngine] = []
    for number, one in enumerate(wanted):

        def report(phase: str, share: float, number: int = number) -> None:
            graph = wanted[number].spec.name
            on_progress(BuildEvent(graph, number + 1, len(wanted), phase, share, clock.remaining(number, share)))

        report("waiting", 0.0)
        with store.building(one.key):
            if not settings.force and (there := store.stored(one.key)) is not None:
                size, allowed = there.sidecar.plan_size, there.sidecar.built.get(_WORKSPACE)
                built.append(BuiltEngine(one.spec.name, _shown(bundle, there.plan), True, 0.0, size, 0, allowed))
                clock.skip(number)
                continue
            built.append(maker.make(one, store, report))
    return BuildReport(
        bundle.root.name, settings.backend, tensorrt.version, precision, targets, settings.profile.kind, workspace,
        tuple(built),
    )  # fmt: skip


def check_builds(tensorrt: TensorRt, settings: BuildSettings) -> None:
    """Refuse to keep the fastest of several builds, or timings, where there is nothing to time. Raises UserError."""
    why = "TensorRT-RTX chooses its kernels when the engine is loaded"
    if settings.builds < 1:
        raise UserError(f"--builds {settings.builds}: must be at least 1.")
    if settings.builds > 1 and tensorrt.is_rtx:
        raise UserError(f"--builds {settings.builds}: {why}, builds do not differ in it")
    if settings.timing_cache is not None and tensorrt.is_rtx:
        raise UserError(f"--timing_cache: {why}, a build measures nothing")
    if settings.timing_cache is not None and settings.builds > 1:
        raise UserError(f"--timing_cache: with it all {settings.builds} builds of --builds are the same; leave one out")


def engine_key(
    bundle: Bundle,
    tensorrt: TensorRt,
    spec: GraphSpec,
    profile: Profile,
    targets: tuple[str, ...],
    options: BuildOptions,
) -> EngineKey:
    """What an engine of this graph must have been built from to be valid."""
    return EngineKey(
        backend=tensorrt.backend,
        version=tensorrt.version,
        cuda_major=tensorrt.cuda_major,
        targets=targets,
        graph=spec.name,
        precision=spec.precision,
        profile=profile.name,
        options=options.names(),
        onnx=graph_hash(bundle, spec.name, spec.precision),
    )


class _Clock:
    """How long the rest takes if building goes by the size of the graphs, as it did so far."""

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = sizes
        self._began = perf_counter()

    def skip(self, number: int) -> None:
        """Graph `number` needs no building."""
        self._sizes[number] = 0

    def remaining(self, number: int, share: float) -> float | None:
        """Seconds from now on, with `share` of graph `number` and all before it done; None in the beginning."""
        done = sum(self._sizes[:number]) + share * self._sizes[number]
        seconds = perf_counter() - self._began
        return None if done <= 0 or seconds < 1 else seconds * (sum(self._sizes) - done) / done


def _graphs(bundle: Bundle, precision: str, wanted: tuple[str, ...] | None) -> list[GraphSpec]:
    there = tuple(dict.fromkeys(graph.name for graph in bundle.manifest.graphs))
    unknown = [name for name in wanted or () if name not in there]
    if unknown:
        raise UserError(f"--graphs {unknown[0]}: {bundle.root} has {', '.join(there)}")
    return [bundle.graph(name, precision) for name in dict.fromkeys(wanted or there)]


def _place(tensorrt: TensorRt, settings: BuildSettings) -> tuple[tuple[str, ...], Driver | None]:
    """What is built for, and the GPU that is built on; None ahead of time. Raises UserError where it cannot be used."""
    if settings.options.targets:
        if settings.gpu_id is not None:
            raise UserError("--gpu builds for that GPU, --target ahead of time for others: leave one out")
        return settings.options.targets, None
    number = settings.gpu_id or 0
    return targets_here(tensorrt, number), driver(number)


def _current(gpu: Driver | None) -> AbstractContextManager[object]:
    """TensorRT works on the GPU that is current on the thread; ahead of time it needs none."""
    return nullcontext() if gpu is None else gpu.current()


def _foresee(
    bundle: Bundle,
    tensorrt: TensorRt,
    precision: str,
    missing: list[_Wanted],
    workspace: int | None,
    gpu: Driver | None,
) -> int:
    """The bytes of scratch that the builder may try. Raises UserError where one of these engines cannot be built."""
    with _current(gpu):
        free = None if gpu is None else gpu.mem_get_info()[0]
        workspace = workspace_for(workspace, free)
        if missing:
            check_room(bundle, precision, [one.spec for one in missing])
        for one in missing:
            need = least_working_memory(tensorrt, one.spec, bundle.path(one.spec.path), one.profile)
            weights = graph_bytes(bundle, one.spec)
            check_working_memory(one.spec.name, one.profile.ranges, need, weights, workspace, free)
    return workspace


@dataclass(frozen=True)
class _Maker:
    """Makes engines, one at a time, on the GPU that they are for or ahead of time."""

    settings: BuildSettings
    bundle: Bundle
    tensorrt: TensorRt
    options: BuildOptions
    gpu: Driver | None

    def make(self, one: _Wanted, store: EngineStore, report: Progress) -> BuiltEngine:
        """Build an engine and store it. Raises UserError, with what it took until then, where it cannot be built."""
        reset_peak()
        began = perf_counter()
        try:
            plan, told = self._plan(one, report)
        except UserError as problem:
            took = f"after {perf_counter() - began:.0f} s, peak memory {peak_memory_mib():.0f} MiB"
            raise UserError(f"{problem} ({took})") from None
        seconds = perf_counter() - began
        about = _provenance(seconds, one.profile) | told | {_WORKSPACE: self.options.workspace}
        if self.gpu is not None and RECORD not in about:
            about |= measured(plan.data, self.tensorrt, one.key.options, self.settings.gpu_id or 0)
        path = store.put(one.key, memoryview(plan.data), about, plan.bindings)
        report("built", 1.0)
        return BuiltEngine(
            one.spec.name, _shown(self.bundle, path), False, round(seconds, 2), path.stat().st_size,
            round(peak_memory_mib()), self.options.workspace,
        )  # fmt: skip

    def _plan(self, one: _Wanted, report: Progress) -> tuple[Plan, dict[str, Any]]:
        """A plan; of several builds the fastest, and what their runs told: milliseconds of all, its working memory."""
        gpu_id, timings = self.settings.gpu_id or 0, None
        if not self.tensorrt.is_rtx and self.settings.builds == 1:
            timings = TimingCache.of(self.tensorrt, gpu_id, self.settings.timing_cache)

        def build() -> Plan:
            making = Build(self.tensorrt, report, timings)
            path, tell = self.bundle.path(one.spec.path), lambda line: report(line, 0.0)
            return run_build(making, path, one.spec, one.profile, self.options, _current(self.gpu), tell)

        if self.settings.builds == 1:
            return build(), {}
        from vexpress_trt.engines.trt.timing import fastest_of

        best, times = fastest_of(
            self.settings.builds, build, self.bundle, self.tensorrt, one.spec, one.profile, one.key, gpu_id
        )
        return best.plan, {"milliseconds": [round(time, 3) for time in times], RECORD: best.working}


def _provenance(seconds: float, profile: Profile) -> dict[str, Any]:
    """What the sidecar tells about a build that decides nothing."""
    status = gpu_status()
    ranges = {symbol: [sizes.smallest, sizes.best, sizes.largest] for symbol, sizes in profile.ranges.items()}
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "system": platform.platform(),
        "gpus": [device.name for device in status.devices],
        "driver_cuda": status.cuda,
        "profile": ranges,
    }


def _shown(bundle: Bundle, path: Path) -> str:
    return path.relative_to(bundle.root).as_posix()
