"""How parts run: each in a process of its own, with its own time and its own failures."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from vexpress_trt.bench.gpu_check.parts import PARTS, SKIPPED, CheckFailed, PartResult, Setting, Skipped
from vexpress_trt.engines.cpu import usable_cores
from vexpress_trt.engines.files import atomic_path

WRONG = "wrong"  # what is not as it has to be, among what a part found
STOPPED = "stopped from outside"
LEAST_SECONDS = 10.0  # a part with less than that left is not begun


def in_groups(names: Sequence[str]) -> list[list[str]]:
    """Parts that run side by side, where there are cores for that, then the others one by one."""
    beside = [name for name in names if PARTS[name].beside]
    groups = [beside] if beside and usable_cores() >= 4 * len(beside) else [[name] for name in beside]
    return groups + [[name] for name in names if not PARTS[name].beside]


def run_apart(names: Sequence[str], setting: Setting, folder: Path, seconds: float = math.inf) -> Iterator[PartResult]:
    """Run parts side by side, each in a fresh process, which is ended when its time, or the `seconds` for all, are up.

    On KeyboardInterrupt all are ended; what they have found comes before it is raised on.
    """
    running = [_Process(name, setting, folder, seconds) for name in names]
    try:
        while running:
            for process in [process for process in running if process.is_over()]:
                running.remove(process)
                yield process.result()
            sleep(0.02)
    except KeyboardInterrupt:
        for process in running:
            process.end(STOPPED)
            yield process.result()
        raise
    finally:
        for process in running:
            process.end(STOPPED)


class _Process:
    """A part at work."""

    def __init__(self, name: str, setting: Setting, folder: Path, seconds: float) -> None:
        part = PARTS[name]
        self.name, self._limit = name, min(part.quick_seconds if setting.quick else part.seconds, seconds)
        self._out, self._words, self._error = folder / f"{name}.json", folder / f"{name}.log", ""
        command = [sys.executable, "-m", "vexpress_trt.bench.gpu_check", "--part", name, "--out", str(folder)]
        command += ["--repository", str(setting.repository), "--device", setting.device]
        command += ["--quick"] if setting.quick else []
        command += ["--bundle", str(setting.bundle)] if setting.bundle else []
        self._out.unlink(missing_ok=True)  # an earlier run's
        self._began, self._seconds = perf_counter(), 0.0
        with self._words.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def is_over(self) -> bool:
        """Whether it is done; it is ended where it takes too long."""
        if self._process.poll() is None:
            if perf_counter() - self._began < self._limit:
                return False
            self.end(f"not done after {self._limit:.0f} s")
        self._seconds = perf_counter() - self._began
        return True

    def end(self, reason: str) -> None:
        """End it, with the processes that it has started itself."""
        if self._process.poll() is None:
            self._error, self._seconds = reason, perf_counter() - self._began
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def result(self) -> PartResult:
        """What it found; the last words of one that was ended tell where it was."""
        found = json.loads(self._out.read_text(encoding="utf-8")) if self._out.is_file() else {}
        wrong, error, words = found.pop(WRONG, ""), self._error, _last_lines(self._words)
        if error:
            error = f"{words}\n{error}".lstrip()
        elif self._process.returncode:
            error = wrong or words or f"exit status {self._process.returncode}"
        return PartResult(self.name, self._seconds, error, found)


def part_main(name: str, setting: Setting, folder: Path) -> None:
    """The body of a part's process. What it raises ends the process, and stands last in its words."""
    if setting.device == "cpu":
        import torch

        torch.set_num_threads(1)
    run_part(name, setting, folder / f"{name}.json")


def run_part(name: str, setting: Setting, out: Path) -> None:
    """Run a part in this process; what it finds is in `out` as JSON from the moment it is found."""
    found: dict[str, Any] = {}

    def record(key: str, value: Any) -> None:
        found[key] = _plain(value)
        with atomic_path(out) as fresh:
            fresh.write_text(json.dumps(found, indent=1), encoding="utf-8")

    try:
        import_module(f"vexpress_trt.bench.gpu_check.{PARTS[name].module}").check(setting, record)
    except Skipped as reason:
        record(SKIPPED, str(reason))
    except CheckFailed as problem:
        record(WRONG, str(problem))
        raise


def _plain(value: Any) -> Any:
    """The value in JSON's kinds; numbers that are not finite, which it has none for, as words."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _last_lines(path: Path, count: int = 12) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(lines[-count:])
