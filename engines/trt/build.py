"""`vexpress build`: all graphs of a bundle in one precision become engines, each built once."""

import json
import platform
import shlex
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.cpu import cpu, usable_cores
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.memory import peak_memory_mib, reset_peak
from vexpress_trt.engines.trt.builder import Build, BuildOptions, Plan, Progress, check_options
from vexpress_trt.engines.trt.fitting import FASTEST_FIRST
from vexpress_trt.engines.trt.flavour import TensorRt, load_tensorrt
from vexpress_trt.engines.trt.key import EngineKey
from vexpress_trt.engines.trt.preflight import check_room, graph_bytes, targets_here
from vexpress_trt.engines.trt.profile import Profile, ProfileSettings
from vexpress_trt.engines.trt.store import EngineStore, graph_hash
from vexpress_trt.engines.trt.timing_cache import TimingCache
from vexpress_trt.engines.trt.working_memory import measured

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class BuildSettings:
    """What to build; None takes the bundle's default. `graphs`: only these (None: all).

    `timing_cache`: a folder for what full TensorRT measures (None: in the user's cache folder).
    """

    bundle: Path
    backend: str = "tensorrt-rtx"
    precision: str | None = None
    graphs: tuple[str, ...] | None = None
    gpu_id: int = 0
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
class BuiltEngine:
    """One engine of a finished build. `seconds` and `peak_memory_mib` are 0 where it was there already; the peak is the
    process's resident memory while this engine was built."""

    graph: str
    path: str
    already_there: bool
    seconds: float
    plan_bytes: int
    peak_memory_mib: int


@dataclass(frozen=True)
class BuildReport:
    """All engines of a bundle for one backend, precision and set of targets."""

    bundle: str
    backend: str
    version: str
    precision: str
    targets: tuple[str, ...]
    profile: str
    engines: tuple[BuiltEngine, ...]

    def as_text(self) -> str:
        """A few lines for a person."""
        lines = [f"{self.bundle}: {self.backend} {self.version}, {self.precision}, for {', '.join(self.targets)}"]
        for engine in self.engines:
            cost = "already there" if engine.already_there else f"{engine.seconds:.1f} s"
            lines.append(f"  {engine.graph:<17} {cost:>14} {engine.plan_bytes / 2**20:9.1f} MiB")
        seconds, size = sum(e.seconds for e in self.engines), sum(e.plan_bytes for e in self.engines)
        peak = max((engine.peak_memory_mib for engine in self.engines), default=0)
        lines.append(f"  {'in all':<17} {seconds:12.1f} s {size / 2**20:9.1f} MiB, peak memory {peak} MiB")
        return "\n".join(lines)


def build_engines(
    settings: BuildSettings, on_progress: Callable[[BuildEvent], None] = lambda event: None
) -> BuildReport:
    """Build what is missing. Raises UserError, naming the remedy, for what cannot be built here.

    An engine appears whole or not at all; Ctrl-C ends the builder at its next step. A process that finds another one
    building the same engine waits for it and takes what it made.
    """
    bundle = Bundle.open(settings.bundle)
    tensorrt = load_tensorrt(settings.backend)
    check_options(tensorrt, settings.options)
    targets = settings.options.targets or targets_here(tensorrt, settings.gpu_id)
    check_builds(tensorrt, settings)
    precision = settings.precision or next((p for p in FASTEST_FIRST if p in bundle.precisions), bundle.precisions[0])
    specs = _graphs(bundle, precision, settings.graphs)
    check_room(bundle, precision, specs)
    store, built = EngineStore(bundle), []
    clock = _Clock([graph_bytes(bundle, spec) for spec in specs])
    for number, spec in enumerate(specs):
        profile = settings.profile.of(spec, bundle.manifest.model)
        key = engine_key(bundle, tensorrt, spec, profile, targets, settings.options)

        def report(phase: str, share: float, spec: GraphSpec = spec, number: int = number) -> None:
            on_progress(BuildEvent(spec.name, number + 1, len(specs), phase, share, clock.remaining(number, share)))

        report("waiting", 0.0)
        with store.building(key):
            if not settings.force and store.has(key):
                path = store.plan_path(key)
                built.append(BuiltEngine(spec.name, _shown(bundle, path), True, 0.0, path.stat().st_size, 0))
                clock.skip(number)
                continue
            reset_peak()
            began = perf_counter()
            plan, times = _built(settings, tensorrt, bundle, spec, profile, key, report)
            seconds = perf_counter() - began
            about = _provenance(seconds, profile, times)
            if not settings.options.targets:
                about |= measured(plan.data, tensorrt, key.options, settings.gpu_id)
            path = store.put(key, memoryview(plan.data), about, plan.bindings)
            report("built", 1.0)
        size = path.stat().st_size
        built.append(
            BuiltEngine(spec.name, _shown(bundle, path), False, round(seconds, 2), size, round(peak_memory_mib()))
        )
    return BuildReport(
        bundle.root.name, settings.backend, tensorrt.version, precision, targets, settings.profile.kind, tuple(built)
    )


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


def write_report(report: BuildReport, path: Path) -> None:
    """What a build took, with the command and the machine, as JSON. Raises UserError where `path` cannot be written."""
    memory = psutil.virtual_memory().total
    document = {
        "command": shlex.join(["vexpress", *sys.argv[1:]]),
        "machine": {"processor": cpu().model, "cores": usable_cores(), "memory_gib": round(memory / 2**30, 1)},
        "seconds": round(sum(engine.seconds for engine in report.engines), 1),
        "peak_memory_mib": max(engine.peak_memory_mib for engine in report.engines),
        "plan_bytes": sum(engine.plan_bytes for engine in report.engines),
        **asdict(report),
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


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
    names = wanted or tuple(dict.fromkeys(graph.name for graph in bundle.manifest.graphs))
    return [bundle.graph(name, precision) for name in dict.fromkeys(names)]


def _built(
    settings: BuildSettings,
    tensorrt: TensorRt,
    bundle: Bundle,
    spec: GraphSpec,
    profile: Profile,
    key: EngineKey,
    report: Progress,
) -> tuple[Plan, list[float]]:
    """A plan; of several builds the fastest, with the milliseconds of all."""
    timings = None
    if not tensorrt.is_rtx and settings.builds == 1:
        timings = TimingCache.of(tensorrt, settings.gpu_id, settings.timing_cache)

    def build() -> Plan:
        making = Build(tensorrt, report, timings)
        return _in_thread(making, bundle.path(spec.path), spec, profile, settings.options)

    if settings.builds == 1:
        return build(), []
    from vexpress_trt.engines.trt.timing import fastest_of

    return fastest_of(settings.builds, build, bundle, tensorrt, spec, profile, key, settings.gpu_id)


def _in_thread(build: Build, *arguments: Any) -> Plan:
    """Run a build beside the main thread, which so remains able to take Ctrl-C and pass it on.

    The end is awaited by an event: a `Thread.join` that Ctrl-C interrupts takes the thread for ended in Python 3.11.
    """
    outcome: list[Any] = []
    ended = threading.Event()

    def work() -> None:
        try:
            outcome.append(build.run(*arguments))
        except BaseException as problem:  # noqa: BLE001 - raised again in the waiting thread
            outcome.append(problem)
        finally:
            ended.set()

    threading.Thread(target=work, name="tensorrt-build").start()
    try:
        while not ended.wait(_POLL_SECONDS):
            pass
    except BaseException:
        build.cancel()
        ended.wait()
        raise
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def _provenance(seconds: float, profile: Profile, times: list[float]) -> dict[str, Any]:
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
        **({"milliseconds": [round(time, 3) for time in times]} if times else {}),
    }


def _shown(bundle: Bundle, path: Path) -> str:
    return path.relative_to(bundle.root).as_posix()
