"""What a worker of a batch does, wherever it runs: one job after another, with engines that stay loaded."""

import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.serving.batch_jobs import identity

CountFrames = Callable[[int], None]
Runner = Callable[[GenerationRequest, CountFrames], dict[str, Any]]
MakeRunner = Callable[[], AbstractContextManager[Runner]]


@dataclass(frozen=True)
class Attempt:
    """How one try of a job ended: with the clip's `summary`, or with the `cause` of its failure.

    `inputs_fault`: trying again would not help, and the worker is as good as before. `output_bytes` is the size of the
    video, `identity` that of the request as its files were before the work began, `worker` the machine and process.
    """

    summary: dict[str, Any] | None = None
    cause: str = ""
    inputs_fault: bool = False
    identity: str = ""
    output_bytes: int = 0
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    worker: str = ""


@contextmanager
def clip_runner() -> Iterator[Runner]:
    """Makes clips, with engines that stay loaded from one to the next."""
    from vexpress_trt.models.box.box import shipped_bundle
    from vexpress_trt.runtime.engine_pool import EnginePool
    from vexpress_trt.runtime.generation import write_video

    with EnginePool() as engines:

        def run(request: GenerationRequest, count_frames: CountFrames) -> dict[str, Any]:
            if request.bundle is None:
                request = replace(request, bundle=shipped_bundle())
            summary = write_video(request, on_progress=lambda event: count_frames(event.frames_done), engines=engines)
            return summary.as_dict()

        yield run


def attempt(run: Runner, request: GenerationRequest, count_frames: CountFrames) -> Attempt:
    """Make one clip. Every exception becomes the cause of a failure; what ends the process, as SIGTERM, is raised."""
    began, worker = perf_counter(), f"{platform.node()}:{os.getpid()}"
    with _heard_warnings() as warnings:
        try:
            try:
                name = identity(request)
            except OSError:
                name = ""  # the run will say what is wrong with the file
            summary = run(request, count_frames)
            ending = {
                "summary": summary,
                "identity": name,
                "output_bytes": os.path.getsize(request.output_path),
            }
        except UserError as problem:
            ending = {"cause": str(problem), "inputs_fault": True}
        except Exception as problem:
            ending = {"cause": f"{type(problem).__name__}: {problem}"}
    return Attempt(**ending, seconds=round(perf_counter() - began, 3), warnings=tuple(warnings), worker=worker)


@contextmanager
def _heard_warnings() -> Iterator[list[str]]:
    """The package's warnings, which belong to the clip's result and not to this process's output."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger("vexpress")
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield heard
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
