"""A worker's work that needs no model: what happens is written in the job's speech file.

Its words: `fail N` and `die N` for the first N attempts, `refuse`, `sleep SECONDS`; nothing for a clip at once. Every
attempt adds a line to `attempts.log` beside the speech: the video's name, the process, and `begin` or `end`.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path
from vexpress_trt.runtime.request import GenerationRequest

FRAMES = 10


@contextmanager
def scripted() -> Iterator[Callable[..., dict[str, Any]]]:
    yield _run


def _run(request: GenerationRequest, count_frames: Callable[[int], None]) -> dict[str, Any]:
    word, _, number = request.audio_path.read_text().partition(" ")
    log, name = request.audio_path.with_name("attempts.log"), request.output_path.name
    before = log.read_text().count(f"{name} begin") if log.exists() else 0
    _note(log, f"{name} begin {os.getpid()} gpu {request.gpu_id} threads {request.threads}")
    count_frames(FRAMES // 2)
    with atomic_path(request.output_path) as temporary:
        temporary.write_text(f"attempt {before + 1} with seed {request.seed}")
        if word == "sleep":
            time.sleep(float(number))
        if word == "refuse":
            raise UserError("the portrait has no face: give one with a face.")
        if word == "fail" and before < int(number):
            raise RuntimeError("the device is gone")
        if word == "die" and before < int(number):
            os.kill(os.getpid(), signal.SIGKILL)
    _note(log, f"{name} end {os.getpid()}")
    return {"frames": FRAMES}


def _note(log: "os.PathLike[str]", line: str) -> None:
    with open(log, "a") as file:
        file.write(line + "\n")
