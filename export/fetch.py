"""`vexpress fetch`: the official weights, from a model hub into the official folder layout."""

import contextlib
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import filelock

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import looking
from vexpress_trt.export.hub_sources import PART_NAMES, PARTS, Part, Source

try:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    from vexpress_trt.export.download import (
        TIMEOUT_SECONDS,
        TRANSPORT_ERROR,
        RemoteFile,
        download,
        has_digest,
        partial_path,
    )
    from vexpress_trt.export.fetch_progress import FetchProgress
    from vexpress_trt.export.fetch_receipt import Receipt
except ModuleNotFoundError as missing:
    raise UserError(
        f"fetching needs the package {missing.name}, which is not installed: pip install 'vexpress-trt[export]'"
    ) from missing

_DISK_RESERVE_BYTES = 64 << 20

State = Literal["here", "resume", "download", "replace"]
log = logging.getLogger("vexpress")


@dataclass(frozen=True)
class FetchResult:
    """What a fetch did: relative paths in the checkpoints folder, and bytes that came over the network."""

    downloaded: tuple[str, ...]
    already_there: tuple[str, ...]
    transferred_bytes: int


@dataclass(frozen=True)
class _Item:
    part: Part
    file: RemoteFile
    state: State
    have: int  # bytes of an earlier, interrupted download


def fetch(
    target: Path,
    *,
    parts: Sequence[str] | None = None,
    endpoint: str | None = None,
    assume_yes: bool = False,
    replace: bool = False,
    say: Callable[[str], None] = print,
    ask: Callable[[str], str] | None = None,
    retry_seconds: float = 1.0,
) -> FetchResult:
    """Download the official weights into the folder `target`, in the layout `vexpress export` reads.

    Sizes and licences are shown as a table and confirmed before anything is written; `assume_yes` accepts them without
    asking. What an earlier run finished and verified is skipped, what it left unfinished is resumed. Every file's hash
    is checked against the one the hub publishes before it gets its name.

    `parts`: any of `PART_NAMES`, default all. `endpoint`: another hub (default: HF_ENDPOINT, else the public one).
    `replace`: also overwrite files that are in the way and did not come from this command. `say` prints a line, `ask`
    puts a question (default: the terminal).

    Raises UserError: no network, hub refuses, disk too small, not confirmed, no terminal to confirm on, wrong hash, a
    file in the way, another fetch into the same folder at work.
    """
    target = Path(target)
    chosen = _chosen_parts(parts)
    endpoint = _checked_endpoint(endpoint)
    with looking():
        in_the_way = target.exists() and not target.is_dir()
    if in_the_way:
        raise UserError(f"{target} is a file; name the folder for the checkpoints")
    listed = _list_parts(chosen, endpoint)
    receipt = Receipt.read(target)
    items = [_examine(part, file, target, receipt) for part, file in listed]
    say(_table(items, target, endpoint))
    todo = [item for item in items if item.state != "here"]
    already = tuple(item.file.target for item in items if item.state == "here")
    if not todo:
        say("Everything is there and verified.")
        with contextlib.suppress(UserError):  # a read-only folder is fine: the next run hashes its files again
            receipt.write(target)
        return FetchResult((), already, 0)
    _refuse_foreign(todo, target, receipt, replace)
    _check_disk(todo, target)
    _confirm(todo, target, assume_yes, ask)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"cannot create {target} ({problem.strerror}); choose another folder") from problem
    with _only_one(target):
        transferred = _download_all(todo, target, endpoint, receipt, say, retry_seconds)
    say(f"{len(todo)} files downloaded and verified. Next: vexpress export --checkpoints {target} --bundle NAME.bundle")
    return FetchResult(tuple(item.file.target for item in todo), already, transferred)


def _chosen_parts(names: Sequence[str] | None) -> list[Part]:
    names = PART_NAMES if names is None else names
    unknown = [name for name in names if name not in PART_NAMES]
    if unknown or not names:
        raise UserError(f"unknown part {', '.join(unknown) or '(none)'}; choose from {', '.join(PART_NAMES)}")
    return [part for part in PARTS if part.name in names]


def _checked_endpoint(endpoint: str | None) -> str:
    endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
    if not endpoint.startswith(("http://", "https://")):
        raise UserError(f"the hub address {endpoint!r} is not a web address; it begins with https://")
    return endpoint


def _list_parts(parts: list[Part], endpoint: str) -> list[tuple[Part, RemoteFile]]:
    """The files of every part from its first source that has them all."""
    listings: dict[str, dict[str, RemoteFile]] = {}
    found = []
    for part in parts:
        for source in part.sources:
            if source.repository not in listings:
                listings[source.repository] = _list_repository(source.repository, endpoint)
            files = _pick(source, listings[source.repository])
            if files:
                found += [(part, file) for file in files]
                break
        else:
            tried = ", ".join(dict.fromkeys(source.repository for source in part.sources))
            raise UserError(
                f"{endpoint} has no complete {part.name} (looked in {tried}); try another hub with --endpoint"
            )
    return found


def _pick(source: Source, listing: dict[str, RemoteFile]) -> list[RemoteFile]:
    if any(path not in listing for path, _ in source.files):
        return []
    wanted = source.files + tuple(pair for pair in source.optional if pair[0] in listing)
    return [RemoteFile(**{**vars(listing[path]), "target": place}) for path, place in wanted]


def _list_repository(repository: str, endpoint: str) -> dict[str, RemoteFile]:
    """All files of a repository at its current commit, by path; empty where the hub does not have it."""
    try:
        info = HfApi(endpoint=endpoint, token=False).model_info(
            repository, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
    except RepositoryNotFoundError:
        return {}
    except HfHubHTTPError as problem:
        status = problem.response.status_code
        raise UserError(f"{endpoint} answered with HTTP status {status}; try again later") from problem
    except OfflineModeIsEnabled as problem:
        raise UserError("huggingface_hub is in offline mode; unset HF_HUB_OFFLINE to download") from problem
    except (TRANSPORT_ERROR, OSError) as problem:
        raise UserError(
            f"cannot reach {endpoint} ({type(problem).__name__}): a network is needed; connect this machine, name a "
            "reachable mirror with --endpoint, or copy the checkpoints folder from another machine"
        ) from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise UserError(f"{endpoint} does not answer like a model hub; check --endpoint and the proxy") from problem
    files = {}
    for entry in info.siblings or ():
        digest = f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}"
        size = entry.lfs.size if entry.lfs else entry.size
        if info.sha and size and not digest.endswith(":None"):
            files[entry.rfilename] = RemoteFile(repository, info.sha, entry.rfilename, "", size, digest)
    return files


@looking()
def _examine(part: Part, file: RemoteFile, folder: Path, receipt: Receipt) -> _Item:
    path = folder / file.target
    if path.is_file():
        known = receipt.knows(path, file)
        if known or (path.stat().st_size == file.size and has_digest(path, file.digest)):
            receipt.add(folder, file)
            return _Item(part, file, "here", file.size)
    partial = partial_path(folder, file)
    have = min(partial.stat().st_size, file.size) if partial.is_file() else 0
    return _Item(part, file, "replace" if path.exists() else "resume" if have else "download", have)


def _table(items: list[_Item], target: Path, endpoint: str) -> str:
    """What would be downloaded, as aligned columns, then the licences."""
    rows = [("file", "size", "state", "from")]
    for item in items:
        state = f"resume at {size_text(item.have)}" if item.state == "resume" else item.state
        rows.append((item.file.target, size_text(item.file.size), state, item.file.repository))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:<{widths[2]}}  {d}" for a, b, c, d in rows]
    licences = [f"  {part.name}: {part.licence}" for part in PARTS if any(item.part is part for item in items)]
    left = sum(item.file.size - item.have for item in items if item.state != "here")
    summary = f"{size_text(left)} to download from {endpoint} into {target}"
    return "\n".join([*lines, "", "Licences:", *licences, "", summary])


def size_text(count: int) -> str:
    """Bytes in the decimal units hubs use: 2.73 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 999.5 * factor else f"{count / factor:.0f} {unit}"
    return f"{count} B"


def _refuse_foreign(todo: list[_Item], folder: Path, receipt: Receipt, replace: bool) -> None:
    """A file in the way that this command did not write is somebody's work: it is not overwritten unasked."""
    foreign = [i.file.target for i in todo if i.state == "replace" and i.file.target not in receipt.entries]
    if foreign and not replace:
        raise UserError(
            f"{', '.join(foreign)} in {folder} differ from the official files and were not written by this command; "
            "move them away, fetch into another folder, or allow it with --replace"
        )


def _check_disk(todo: list[_Item], target: Path) -> None:
    needed = sum(item.file.size - item.have for item in todo) + _DISK_RESERVE_BYTES
    existing = next(path for path in (target.absolute(), *target.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{target} needs {size_text(needed)}, its disk has {size_text(free)} free; free some space or choose "
            "another folder"
        )


def _confirm(todo: list[_Item], target: Path, assume_yes: bool, ask: Callable[[str], str] | None) -> None:
    if assume_yes:
        return
    if ask is None:
        if not sys.stdin.isatty():
            raise UserError("there is no terminal to confirm on; add --yes to accept the sizes and licences above")
        ask = input
    try:
        answer = ask("Download this and accept the licences? [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise UserError("not confirmed, nothing was downloaded")


def _only_one(target: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(target / ".vexpress-fetch.lock", timeout=0)
    try:
        return lock.acquire()
    except filelock.Timeout as busy:
        raise UserError(f"another fetch is writing into {target}; wait for it to finish") from busy
    except OSError as problem:
        raise UserError(f"cannot write into {target} ({problem.strerror}); choose another folder") from problem


def _download_all(
    todo: list[_Item], target: Path, endpoint: str, receipt: Receipt, say: Callable[[str], None], retry_seconds: float
) -> int:
    with FetchProgress(sum(item.file.size for item in todo), say) as progress:
        for item in todo:
            on_bytes = progress.file(item.file.target, item.file.size)
            try:
                download(item.file, target, endpoint, on_bytes=on_bytes, retry_seconds=retry_seconds)
            except KeyboardInterrupt:
                log.warning("%s is unfinished; run the same command again to continue it", item.file.target)
                raise
            receipt.add(target, item.file)
            receipt.write(target)
            progress.done(item.file.target, item.file.size)
    return sum(item.file.size - item.have for item in todo)
