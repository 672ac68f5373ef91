"""`vexpress build`: all graphs of a bundle in one precision become engines, each built once."""

import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.memory import peak_memory_mib
from vexpress_trt.engines.trt.builder import Build, BuildOptions, check_options
from vexpress_trt.engines.trt.flavour import TensorRt, load_tensorrt
from vexpress_trt.engines.trt.key import EngineKey
from vexpress_trt.engines.trt.preflight import check_room, targets_here
from vexpress_trt.engines.trt.profile import Profile, ProfileSettings
from vexpress_trt.engines.trt.store import EngineStore, graph_hash

_POLL_SECONDS = 0.2
PRECISIONS = ("fp16", "bf16", "fp32")  # best first


@dataclass(frozen=True)
class BuildSettings:
    """What to build; None takes the bundle's default. `graphs`: only these (None: all)."""

    bundle: Path
    backend: str = "tensorrt-rtx"
    precision: str | None = None
    graphs: tuple[str, ...] | None = None
    gpu_id: int = 0
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    options: BuildOptions = field(default_factory=BuildOptions)
    force: bool = False


@dataclass(frozen=True)
class BuildEvent:
    """Where a build is: graph `number` of `count`, a phase of the builder and the share of it that is done."""

    graph: str
    number: int
    count: int
    phase: str
    share: float


@dataclass(frozen=True)
class BuiltEngine:
    """One engine of a finished build. `seconds` is 0 where it was there already; `peak_memory_mib` is the process's."""

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
    precision = settings.precision or next((p for p in PRECISIONS if p in bundle.precisions), bundle.precisions[0])
    specs = _graphs(bundle, precision, settings.graphs)
    check_room(bundle, precision, tuple(spec.name for spec in specs))
    store, built = EngineStore(bundle), []
    for number, spec in enumerate(specs):
        profile = settings.profile.of(spec, bundle.manifest.model)
        key = engine_key(bundle, tensorrt, spec, profile, targets, settings.options)

        def report(phase: str, share: float, spec: GraphSpec = spec, number: int = number) -> None:
            on_progress(BuildEvent(spec.name, number + 1, len(specs), phase, share))

        report("waiting", 0.0)
        with store.building(key):
            if not settings.force and store.has(key):
                path = store.plan_path(key)
                built.append(BuiltEngine(spec.name, _shown(bundle, path), True, 0.0, path.stat().st_size, 0))
                continue
            began = perf_counter()
            plan = _in_thread(Build(tensorrt, report), bundle.path(spec.path), spec, profile, settings.options)
            seconds = perf_counter() - began
            path = store.put(key, memoryview(plan), _provenance(seconds, profile))
        size = path.stat().st_size
        built.append(
            BuiltEngine(spec.name, _shown(bundle, path), False, round(seconds, 2), size, round(peak_memory_mib()))
        )
    return BuildReport(
        bundle.root.name, settings.backend, tensorrt.version, precision, targets, settings.profile.kind, tuple(built)
    )


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


def _graphs(bundle: Bundle, precision: str, wanted: tuple[str, ...] | None) -> list[GraphSpec]:
    names = wanted or tuple(dict.fromkeys(graph.name for graph in bundle.manifest.graphs))
    return [bundle.graph(name, precision) for name in names]


def _in_thread(build: Build, *arguments: Any) -> Any:
    """Run a build beside the main thread, which so remains able to take Ctrl-C and pass it on."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(build.run(*arguments))
        except BaseException as problem:  # noqa: BLE001 - raised again in the waiting thread
            outcome.append(problem)

    thread = threading.Thread(target=work, name="tensorrt-build")
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
    except BaseException:
        build.cancel()
        thread.join()
        raise
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


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
