"""The results of a batch: a JSON Lines file that only grows, one line for each job that came to an end."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import check_place
from vexpress_trt.serving.batch_jobs import Job, identity

DONE, FAILED = "done", "failed"
_BEGINNING = b'{"status": "'  # of every line
Record = dict[str, Any]


class Results:
    """Reads what earlier runs recorded, and appends. Use as a context manager: one run at a time has the file.

    A record begins with `status` (done or failed) and has at least `output_path`; a done one has the request's
    `identity` and the video's size, `output_bytes`. The last line may be torn, as a killed run leaves it: it is cut
    off. Raises UserError where another run has the file, it cannot be written, or it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        self._file = -1
        self._latest: dict[str, Record] = {}

    def __enter__(self) -> Self:
        check_place(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another `vexpress batch` is writing {self.path}: wait for it, or end it") from None
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            if not self.path.is_file():
                raise UserError(f"{self.path} is no regular file: name another file with --results")
            self._read()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._lock.release()

    def append(self, record: Record) -> None:
        """Add a line; it is on the disk when this returns. Raises UserError where it cannot be written."""
        line = json.dumps(record).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as problem:
            raise UserError(
                f"the result of {record['output_path']} could not be written to {self.path}: "
                f"{os.strerror(problem.errno).lower()}; make room, then run the same command again"
            ) from problem
        self._latest[record["output_path"]] = record

    def has(self, job: Job) -> bool:
        """Whether the video of this very request was made, and is still there."""
        record = self._latest.get(job.output)
        if record is None or record["status"] != DONE:
            return False
        try:
            return os.path.getsize(job.output) == record["output_bytes"] and identity(job.request) == record["identity"]
        except OSError:
            return False

    def _read(self) -> None:
        content = self.path.read_bytes()
        *lines, tail = content.split(b"\n")
        for number, line in enumerate(lines, 1):
            record = _record(line)
            if record is None:
                raise UserError(
                    f"line {number} of {self.path} is not the result of a job: name another file with --results"
                )
            self._latest[record["output_path"]] = record
        if not tail:
            return
        if tail[: len(_BEGINNING)] != _BEGINNING[: len(tail)]:
            raise UserError(f"{self.path} does not hold results of jobs: name another file with --results")
        os.ftruncate(self._file, len(content) - len(tail))


def _record(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    wanted = {"output_path", "status"}
    if isinstance(record, dict) and record.get("status") == DONE:
        wanted |= {"identity", "output_bytes"}
    return record if isinstance(record, dict) and wanted <= record.keys() else None
