"""The jobs of a batch: lines of a JSON Lines file, checked as a whole before any work, and what tells two apart."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import sha256_file
from vexpress_trt.engines.manifest import MANIFEST_NAME
from vexpress_trt.models.box.box import BOX, GRAPHS
from vexpress_trt.runtime.faces.insightface_detector import find_models
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.runtime.request_json import field_value
from vexpress_trt.runtime.tracks import sidecar
from vexpress_trt.runtime.video_output import check_output_path

INPUTS = ("reference_image_path", "audio_path", "kps_path")
NOT_IN_A_BATCH = {
    "gpu_id": "the batch gives every worker its device",
    "dump_tensors": "one clip at a time can be looked into, with `vexpress generate`",
}
_FIELDS = {spec.name for spec in fields(GenerationRequest)}
# Where a clip goes and how fast it is made do not tell requests apart.
_NO_MATTER = {"output_path", "dump_tensors", "portrait_cache", "threads", "gpu_id", "gpu_memory"}
_PROBLEMS_SHOWN = 20


@dataclass(frozen=True)
class Job:
    """One clip to make, and the line that asks for it, counted from 1."""

    line: int
    request: GenerationRequest

    @property
    def output(self) -> str:
        """The absolute path of the video: what a job is known by."""
        return str(self.request.output_path)

    @property
    def engines(self) -> tuple[Any, ...]:
        """Jobs that are alike here can use the same loaded engines."""
        request = self.request
        return (request.bundle, request.backend, request.dtype, request.device, request.threads)


def read_jobs(path: Path, defaults: Mapping[str, Any]) -> list[Job]:
    """The jobs of a file, with one JSON object of request fields a line; `defaults` fill what a line leaves out.

    Relative paths in the file are meant from its folder, those in `defaults` from the present one. Empty lines are
    skipped. Raises UserError that lists the lines with unknown or unusable fields, missing ones, and an output that
    another line writes or reads.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise UserError(f"cannot read {path}: {os.strerror(problem.errno).lower()}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: expected one JSON object of request fields a line") from None
    given = {name: _absolute(name, value, Path.cwd()) for name, value in defaults.items()}
    jobs, problems = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                jobs.append(Job(number, _request(line, given, path.absolute().parent)))
            except UserError as problem:
                problems.append((number, str(problem)))
    problems += _collisions(jobs)
    if problems:
        shown = [f"  line {number}: {problem}" for number, problem in sorted(problems)[:_PROBLEMS_SHOWN]]
        more = [f"  and {len(problems) - _PROBLEMS_SHOWN} more"] if len(problems) > _PROBLEMS_SHOWN else []
        raise UserError("\n".join([f"{path} cannot be used, nothing was started:", *shown, *more]))
    if not jobs:
        raise UserError(f"{path} has no jobs: expected one JSON object of request fields a line")
    return jobs


def identity(request: GenerationRequest) -> str:
    """A hash of all that decides what the clip looks like: settings, and the content of inputs and models.

    Raises OSError where a file cannot be read.
    """
    apart = {*_NO_MATTER, *INPUTS, "bundle", "face_model_dir"}
    settings = {
        spec.name: value
        for spec in fields(request)
        if spec.name not in apart and (value := getattr(request, spec.name)) is not None
    }
    files = {name: path for name in INPUTS if (path := getattr(request, name)) is not None}
    if request.kps_path is not None and sidecar(request.kps_path).exists():
        files["kps_path.json"] = sidecar(request.kps_path)
    if request.face_model_dir is not None and (models := find_models(request.face_model_dir)) is not None:
        files |= {path.name: path for path in models.glob("*.onnx")}
    files["bundle"] = (request.bundle or BOX / GRAPHS) / MANIFEST_NAME  # the manifest holds the hashes of all others
    whole = {"settings": settings, "files": {name: _content(path) for name, path in files.items()}}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _content(path: Path) -> str:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is no regular file")  # a pipe or a device may have no end
    return _hashed(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hashed(path: Path, size: int, modified: int) -> str:
    """The hash of a file's content: many jobs share a portrait or speech."""
    return sha256_file(path)


def _request(line: str, given: Mapping[str, Any], folder: Path) -> GenerationRequest:
    try:
        job = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise UserError(f"is not JSON ({problem})") from None
    if not isinstance(job, dict):
        raise UserError("is not a JSON object")
    for name in job:
        if name in NOT_IN_A_BATCH:
            raise UserError(f"{name} has no place in a batch: {NOT_IN_A_BATCH[name]}")
        if name not in _FIELDS:
            raise UserError(f"{name!r} is not a field of a request, see `vexpress generate --help`")
    values = {
        name: _absolute(name, field_value(name, value), folder) for name, value in job.items() if value is not None
    }
    request = GenerationRequest(**{**given, **values})
    if request.output_path is None:
        raise UserError("output_path is missing: name the MP4 to write")
    request.validate()
    check_output_path(request.output_path)
    return request


def _absolute(name: str, value: Any, folder: Path) -> Any:
    """Paths from the root on, as workers may have another folder to start from."""
    if isinstance(value, Path):
        return Path(os.path.normpath(folder / value))
    if name == "portrait_cache" and value != "off":
        return os.path.normpath(folder / value)
    return value


def _collisions(jobs: list[Job]) -> Iterator[tuple[int, str]]:
    """(line, problem) for outputs that another line writes or any line reads."""
    readers, writers = {}, {}
    for job in jobs:
        for name in INPUTS:
            if (path := getattr(job.request, name)) is not None:
                readers.setdefault(os.path.realpath(path), job.line)
    for job in jobs:
        place = os.path.realpath(job.output)
        if place in readers:
            yield job.line, f"output_path {job.output} is an input of line {readers[place]}"
        if writers.setdefault(place, job.line) != job.line:
            yield job.line, f"output_path {job.output} is written by line {writers[place]} already"
