"""What a finished `vexpress build` tells: engines, sizes, time and memory, for people and as JSON."""

import json
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from vexpress_trt.engines.cpu import cpu, usable_cores
from vexpress_trt.engines.files import atomic_path


@dataclass(frozen=True)
class BuiltEngine:
    """One engine of a finished build. `seconds` and `peak_memory_mib` are 0 where it was there already; the peak is the
    process's resident memory while this engine was built.

    `workspace`: the bytes of scratch that its builder was allowed, None where that is not known.
    """

    graph: str
    path: str
    already_there: bool
    seconds: float
    plan_bytes: int
    peak_memory_mib: int
    workspace: int | None


@dataclass(frozen=True)
class BuildReport:
    """All engines of a bundle for one backend, precision and set of targets; `workspace` is what was allowed now."""

    bundle: str
    backend: str
    version: str
    precision: str
    targets: tuple[str, ...]
    profile: str
    workspace: int
    engines: tuple[BuiltEngine, ...]

    def as_text(self) -> str:
        """A few lines for a person."""
        lines = [f"{self.bundle}: {self.backend} {self.version}, {self.precision}, for {', '.join(self.targets)}"]
        lines += [self._line(engine) for engine in self.engines]
        seconds, size = sum(e.seconds for e in self.engines), sum(e.plan_bytes for e in self.engines)
        peak = max((engine.peak_memory_mib for engine in self.engines), default=0)
        lines.append(f"  {'in all':<17} {seconds:12.1f} s {size / 2**20:9.1f} MiB, peak memory {peak} MiB")
        return "\n".join(lines)

    def _line(self, engine: BuiltEngine) -> str:
        cost = "already there" if engine.already_there else f"{engine.seconds:.1f} s"
        line = f"  {engine.graph:<17} {cost:>14} {engine.plan_bytes / 2**20:9.1f} MiB"
        if not engine.already_there:
            return f"{line}, peak memory {engine.peak_memory_mib} MiB"
        if engine.workspace not in (None, self.workspace):
            return f"{line}, built with --workspace {engine.workspace / 2**30:g}; --force builds it anew"
        return line


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
