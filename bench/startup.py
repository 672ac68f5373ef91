"""From the start of a process to its first denoiser call: what a user waits for before any work on the clip begins.

Measured on the demo's portrait and speech, in a process of its own that stops when the call has returned:

    python -m vexpress_trt.bench.startup STARTED REQUEST_FIELD=JSON...
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import as_file, files
from statistics import median
from time import perf_counter, time
from typing import Any

from vexpress_trt.bench.report import Spread

# The request's fields that decide what is loaded and how large it is.
FIELDS = ("bundle", "backend", "dtype", "threads", "image_width", "image_height", "context_frames", "guidance_scale")


@dataclass(frozen=True)
class Startup:
    """Seconds from the start of the process to the end of its first denoiser call, and the medians of its parts.

    `interpreter` is Python itself, `imports` our code and its libraries; the other parts are the stages of `generate`:
    `load engines` holds the engines of all graphs used so far, `denoise` the first call with whatever the engine
    compiles for it. `processes` were measured.
    """

    processes: int
    seconds: Spread
    parts: dict[str, float]


def measure_startup(repeats: int, **request: Any) -> Startup | None:
    """Start so many processes, one after the other, on a request's fields (see `FIELDS`); None for no repeats.

    Raises UserError with the process's own sentence where it fails.
    """
    from vexpress_trt.bench.fresh import run_fresh

    if repeats < 1:
        return None
    settings = [f"{name}={json.dumps(value, default=str)}" for name, value in request.items()]
    found = [
        run_fresh("vexpress_trt.bench.startup", [repr(time()), *settings], "the measurement of the start").result
        for _ in range(repeats)
    ]
    return combined(found)


def combined(found: list[dict[str, float]]) -> Startup:
    """The parts of several processes, {part: seconds} each, as one result."""
    names = dict.fromkeys(name for parts in found for name in parts)
    medians = {name: round(median(parts.get(name, 0.0) for parts in found), 4) for name in names}
    return Startup(len(found), Spread.of(sum(parts.values()) for parts in found), medians)


class _Reached(Exception):
    """The first denoiser call has returned."""


def main(arguments: list[str]) -> int:
    """Print {part: seconds} as JSON; exit status 2 with a sentence where the request cannot be run."""
    interpreter = time() - float(arguments[0])
    began = perf_counter()
    from vexpress_trt.engines.errors import UserError
    from vexpress_trt.runtime.generation import generate
    from vexpress_trt.runtime.request import GenerationRequest

    imports = perf_counter() - began
    demo = files("vexpress_trt.models") / "demo"
    try:
        with as_file(demo / "portrait.jpg") as portrait, as_file(demo / "speech.flac") as speech:
            request = GenerationRequest(portrait, speech, portrait_cache="off", **_parsed(arguments[1:]))
            stages = _until_first_call(generate, request)
    except UserError as problem:
        print(f"vexpress: error: {problem}", file=sys.stderr)
        return 2
    print(json.dumps({"interpreter": interpreter, "imports": imports, **stages}))
    return 0


def _until_first_call(generate: Any, request: Any) -> dict[str, float]:
    def stop_at_denoiser(event: Any) -> None:
        if event.stage == "denoise":
            raise _Reached

    generation = generate(request, on_progress=stop_at_denoiser)
    try:
        for _ in generation:
            pass
    except _Reached:
        pass
    seconds = dict(generation.watch.seconds)
    return {name: seconds[name] for name in seconds if name not in ("decode", "encode")}


def _parsed(settings: Iterable[str]) -> dict[str, Any]:
    return {name: json.loads(value) for name, _, value in (setting.partition("=") for setting in settings)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
