"""The parts of the check: each is a function in a process of its own, with its own time and its own failures."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

from vexpress_trt.engines.files import atomic_path

# {part: (module, seconds it may take, seconds with --quick)}. Much of that is Triton's, which compiles the denoiser's
# kernels for every size and type that it has not met before.
PARTS: dict[str, tuple[str, float, float]] = {
    "kernels": ("kernels", 150, 120),
    "loop": ("loops", 60, 60),
    "golden": ("golden", 60, 60),
    "waits": ("waits", 60, 40),
    "generate": ("generate", 90, 60),
    "tensorrt": ("plans", 420, 120),
    "speed": ("speed", 100, 60),
    "clip": ("clip", 55, 45),
    "compiled": ("compiled", 240, 60),
    "full_tensorrt": ("full_plan", 1800, 1800),
}
# {part that takes minutes: the flag that asks for it}
ON_REQUEST = {"compiled": "--compile", "full_tensorrt": "--bundle"}
SKIPPED = "skipped"  # what a part that could not run at all finds: the reason


class CheckFailed(Exception):
    """A measured value is not what it has to be."""


class Skipped(Exception):
    """What a part needs is not there."""


@dataclass(frozen=True)
class Setting:
    """`device` is "cuda" or, for tests of the check itself, "cpu"; `quick` takes the smallest sizes; `bundle` is one of
    the size that TensorRT is to be timed at."""

    repository: Path
    device: str = "cuda"
    quick: bool = False
    bundle: Path | None = None

    @property
    def small(self) -> bool:
        """Whether to measure small networks only."""
        return self.quick or self.device == "cpu"


@dataclass(frozen=True)
class PartResult:
    """What a part found, until it ended: `error` is "" where all is well, else what went wrong."""

    name: str
    seconds: float
    error: str = ""
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """In a word or two."""
        if self.error:
            return "failed"
        return "not run" if set(self.found) == {SKIPPED} else "passed"


Record = Callable[[str, Any], None]


def run_part(name: str, setting: Setting, out: Path) -> None:
    """Run a part in this process; what it finds is in `out` as JSON from the moment it is found."""
    found: dict[str, Any] = {}

    def record(key: str, value: Any) -> None:
        found[key] = value
        with atomic_path(out) as fresh:
            fresh.write_text(json.dumps(found, indent=1), encoding="utf-8")

    try:
        import_module(f"vexpress_trt.bench.gpu_check.{PARTS[name][0]}").check(setting, record)
    except Skipped as reason:
        record(SKIPPED, str(reason))


def run_apart(name: str, setting: Setting, folder: Path) -> PartResult:
    """Run a part in a fresh process, which is ended when its time is up."""
    _, seconds, quick_seconds = PARTS[name]
    limit = quick_seconds if setting.quick else seconds
    out, words = folder / f"{name}.json", folder / f"{name}.log"
    command = [sys.executable, "-m", "vexpress_trt.bench.gpu_check", "--part", name, "--out", str(folder)]
    command += ["--repository", str(setting.repository), "--device", setting.device]
    command += ["--quick"] if setting.quick else []
    command += ["--bundle", str(setting.bundle)] if setting.bundle else []
    out.unlink(missing_ok=True)  # an earlier run's
    began = perf_counter()
    error = ""
    with words.open("w", encoding="utf-8") as log:
        part = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            part.wait(limit)
        except subprocess.TimeoutExpired:
            error = f"not done after {limit:.0f} s"
        finally:
            if part.poll() is None:
                os.killpg(part.pid, signal.SIGKILL)  # with the processes it has started itself
                part.wait()
    if part.returncode and not error:
        error = _last_lines(words) or f"exit status {part.returncode}"
    found = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    return PartResult(name, perf_counter() - began, error, found)


def part_main(name: str, setting: Setting, folder: Path) -> None:
    """The body of a part's process. What it raises ends the process, and stands last in its words."""
    if setting.device == "cpu":
        import torch

        torch.set_num_threads(1)
    run_part(name, setting, folder / f"{name}.json")


def as_document(results: list[PartResult], machine: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """What is written as JSON."""
    return {
        "kind": "gpu_check",
        "machine": machine,
        "quick": setting.quick,
        "parts": [asdict(result) for result in results],
    }


def _last_lines(path: Path, count: int = 12) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(lines[-count:])
