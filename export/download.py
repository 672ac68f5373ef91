"""One file from a model hub: resumed where it broke off, checked against its published hash, renamed when whole."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from vexpress_trt.engines.errors import UserError

# The transport library's base error: huggingface_hub 1 speaks through httpx, 2 through httpx2.
TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]

TIMEOUT_SECONDS = 30.0
_ATTEMPTS_WITHOUT_PROGRESS = 5
_FILE_READ_BYTES = 8 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at one commit, and where it belongs in the checkpoints folder.

    `digest` is `sha256:<hex>` for large files and `git:<hex>` (SHA-1 of a Git blob) for small ones: the two hashes a
    hub publishes.
    """

    repository: str
    revision: str
    path: str
    target: str
    size: int
    digest: str

    def url(self, endpoint: str) -> str:
        """The address the file is downloaded from."""
        return hf_hub_url(self.repository, self.path, revision=self.revision, endpoint=endpoint)


def has_digest(path: Path, digest: str) -> bool:
    """Whether a file's content has the published `digest` (see `RemoteFile`)."""
    kind, _, expected = digest.partition(":")
    if kind == "sha256":
        state = hashlib.sha256()
    else:
        state = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_FILE_READ_BYTES):
            state.update(block)
    return state.hexdigest() == expected


def partial_path(folder: Path, file: RemoteFile) -> Path:
    """Where the unfinished download lies. Its name holds the hash: a partial file of another version is not resumed."""
    target = folder / file.target
    return target.with_name(f"{target.name}.{file.digest.partition(':')[2][:12]}.part")


def download(
    file: RemoteFile, folder: Path, endpoint: str, *, on_bytes: Callable[[int], None], retry_seconds: float = 1.0
) -> None:
    """Download `file` to its place below `folder`; `on_bytes` hears how many bytes are there, old ones included.

    The content is collected in a `.part` file which survives an interruption and is continued by the next call. Only
    content with the right hash gets the final name; content with a wrong one is deleted. `retry_seconds` is the first
    pause after a broken connection, doubled at each attempt that brought nothing.

    Raises UserError when the connection keeps failing, the hub refuses, the disk is full, or the hash is wrong.
    """
    target, partial = folder / file.target, partial_path(folder, file)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in target.parent.glob(f"{target.name}.*.part"):
            if stale != partial:
                stale.unlink()
        _collect(file, partial, endpoint, on_bytes, retry_seconds)
        if not has_digest(partial, file.digest):
            partial.unlink()
            raise UserError(
                f"{file.path} of {file.repository} arrived with a wrong hash (expected {file.digest}) and was deleted; "
                "run the command again, and mistrust the connection or mirror if it happens twice"
            )
        with open(partial, "rb") as content:
            os.fsync(content.fileno())
        os.replace(partial, target)
    except OSError as problem:  # the transport's own errors are dealt with in _collect
        raise UserError(
            f"cannot write {target} ({problem.strerror or problem}): free space or choose another folder, then run the "
            "command again; it continues where it stopped"
        ) from problem


def _collect(
    file: RemoteFile, partial: Path, endpoint: str, on_bytes: Callable[[int], None], retry_seconds: float
) -> None:
    """Append to `partial` until it has the full size, over as many connections as it takes."""
    failures = 0
    while (have := _size(partial)) != file.size:
        on_bytes(have)
        problem = _stream(file, partial, endpoint, have, on_bytes)
        now = _size(partial)
        if now == file.size:
            break
        failures = 0 if now > have else failures + 1
        if failures >= _ATTEMPTS_WITHOUT_PROGRESS:
            raise UserError(
                f"the download of {file.path} from {endpoint} broke off at {now} of {file.size} bytes "
                f"({_words(problem)}); run the command again, it continues from there"
            )
        time.sleep(retry_seconds * 2**failures)
    on_bytes(file.size)


def _stream(
    file: RemoteFile, partial: Path, endpoint: str, have: int, on_bytes: Callable[[int], None]
) -> Exception | None:
    """One connection: everything from byte `have` on, or from the start if the server does not do ranges.

    Returns what broke it, if that may pass; raises UserError for a refusal that will not.
    """
    headers = build_hf_headers(token=False)  # everything here is public: no token leaves this machine
    headers["Accept-Encoding"] = "identity"  # a compressed body could not be resumed
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with get_session().stream("GET", file.url(endpoint), headers=headers, timeout=TIMEOUT_SECONDS) as response:
            hf_raise_for_status(response)
            have = have if response.status_code == 206 else 0
            with open(partial, "ab" if have else "wb") as sink:
                for chunk in response.iter_bytes():
                    have += len(chunk)
                    if have > file.size:
                        break
                    sink.write(chunk)
                    on_bytes(have)
    except HfHubHTTPError as refusal:
        status = refusal.response.status_code
        if status == 416:  # the server has less than we do: not the content we began with
            partial.unlink(missing_ok=True)
        elif status not in (408, 429) and status < 500:
            raise UserError(
                f"the hub refused {file.path} of {file.repository} with HTTP status {status}; try again later or name "
                "another hub with --endpoint"
            ) from refusal
        return refusal
    except TRANSPORT_ERROR as broken:
        return broken
    if have > file.size:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{file.path} of {file.repository} is longer than the {file.size} bytes its hub announces; mistrust the "
            "connection or mirror, and name another hub with --endpoint"
        )
    return None


def _words(problem: Exception | None) -> str:
    if isinstance(problem, HfHubHTTPError):
        return f"HTTP status {problem.response.status_code}"
    return type(problem).__name__ if problem else "the server closed the connection"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
