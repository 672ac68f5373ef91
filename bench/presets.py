"""What a clip costs by each preset: in a process of its own, and from a server that is warm.

    vexpress serve &
    python -m vexpress_trt.bench.presets --server localhost:8001 --json bench/results/presets.json

The clip is made from `models/demo`: a photograph, which the model in the box does not know how to move, but no time
depends on that. Every clip is a command of its own, all kinds in turns; the first round is not counted. Without
`--server` there are processes only.
"""

import argparse
import shlex
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from vexpress_trt.bench.fresh import Finished, run_fresh
from vexpress_trt.bench.machine import describe_machine, machine_line
from vexpress_trt.bench.report import Spread, check_json_path, table, write_json
from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.presets import PRESETS

GUIDANCE = 2.0  # which suits the model in the box
PROCESS, SERVER = "process", "warm server"

Generate = Callable[[list[str]], Finished]


@dataclass(frozen=True)
class Cost:
    """Of a clip by a preset. `seconds`: from the start of the command to its end in a process of its own, and from the
    request to the last frame from a server; `first_frame`: seconds from the request to the first frame."""

    preset: str
    where: str
    frames: int
    denoiser_calls: int
    seconds: Spread
    first_frame: Spread

    @property
    def per_frame(self) -> Spread:
        return self.seconds.scaled(1 / self.frames)


@dataclass(frozen=True)
class Report:
    """What is written: `rounds` counted clips of each kind."""

    rounds: int
    costs: list[Cost]
    command: str = ""
    machine: dict[str, object] = field(default_factory=describe_machine)
    kind: str = "presets"

    def as_text(self) -> str:
        """A Markdown table, with the ends of what varied."""
        rows = (
            (cost.preset, cost.where, cost.per_frame.text(3), cost.first_frame.text(3), str(cost.frames))
            for cost in self.costs
        )
        header = ("preset", "where", "s per frame", "first frame s", "frames")
        return f"{machine_line(self.machine)}, medians of {self.rounds}\n\n{table(header, rows)}"


def measure(flags: list[str], rounds: int, server: list[str] | None, generate: Generate) -> Report:
    """Make each clip 1 + `rounds` times; `flags` are those of all, `server` those that name one."""
    kinds = [(preset, PROCESS) for preset in PRESETS] + [(preset, SERVER) for preset in PRESETS if server]
    found: dict[tuple[str, str], list[tuple[float, dict[str, Any]]]] = {kind: [] for kind in kinds}
    for _ in range(1 + rounds):
        for preset, where in kinds:
            own = ["--preset", preset, *((server or []) if where == SERVER else [])]
            done = generate([*flags, *own])
            seconds = done.result["total_seconds"] if where == SERVER else done.seconds
            found[preset, where].append((seconds, done.result))
    return Report(rounds, [_cost(*kind, found[kind][1:]) for kind in kinds])


def _cost(preset: str, where: str, clips: list[tuple[float, dict[str, Any]]]) -> Cost:
    _, last = clips[-1]
    return Cost(
        preset,
        where,
        last["frames"],
        last["denoiser_calls"],
        Spread.of(seconds for seconds, _ in clips),
        Spread.of(clip["time_to_first_frame"] for _, clip in clips),
    )


def _demo(stack: ExitStack) -> Iterator[str]:
    """The flags of the clip, which is written to a folder that goes with `stack`."""
    models = files("vexpress_trt.models")
    portrait = stack.enter_context(as_file(models / "demo" / "portrait.jpg"))
    speech = stack.enter_context(as_file(models / "demo" / "speech.flac"))
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vexpress-bench-"))
    yield from ("--reference_image_path", str(portrait), "--audio_path", str(speech))
    yield from ("--output_path", str(Path(folder, "clip.mp4")), "--fps", "25", "--guidance_scale", str(GUIDANCE))


def _command(server: str | None, rounds: int) -> str:
    """What to repeat, without the token."""
    words = ["python", "-m", "vexpress_trt.bench.presets", *(["--server", server] if server else [])]
    return shlex.join([*words, "--rounds", str(rounds)])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", metavar="HOST:PORT")
    parser.add_argument("--token")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds: at least 1")
    server = ["--server", args.server, *(["--token", args.token] if args.token else [])] if args.server else None

    def generate(flags: list[str]) -> Finished:
        return run_fresh("vexpress_trt.cli", ["generate", *flags, "--json", "--quiet"], "a clip")

    try:
        check_json_path(args.json)
        with ExitStack() as stack:
            report = measure(list(_demo(stack)), args.rounds, server, generate)
        report = replace(report, command=_command(args.server, args.rounds))
        print(report.as_text())
        if args.json is not None:
            write_json(report, args.json)
    except UserError as problem:
        parser.exit(2, f"vexpress: error: {problem}\n")


if __name__ == "__main__":
    main()
