"""Files that are either whole or absent: atomic writes and content hashes."""

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from vexpress_trt.engines.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG}
_CHUNK_BYTES = 8 << 20
_LOCK = ".lock"
_TEMPORARY = re.compile(r"\.(.*)\.[0-9a-f]{8}\.tmp(\..*)?(?<!\.lock)")  # as `_temporary` names them


@contextlib.contextmanager
def atomic_path(target: Path, *, directory: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `target` that becomes `target` when the block succeeds.

    The temporary has the suffix of `target`, so writers that choose a format by suffix keep working. With
    `directory=True` it is an existing empty folder; otherwise the block creates the file. On success everything is
    flushed to the disk and renamed over `target`; on any exception, Ctrl-C included, the temporary is removed and
    `target` is as it was. Missing parent folders are made, and removed again on an exception. What a killed process
    has left beside `target` is removed at the beginning.

    Raises UserError when the parent folder cannot be made or written, when the disk is full, and when `target` exists
    as the other kind (a folder where a file is meant, or the reverse).
    """
    target = Path(target)
    made: list[Path] = []
    temporary = _temporary(target)
    try:
        for folder in reversed([folder for folder in target.parents if not folder.exists()]):
            try:
                folder.mkdir(exist_ok=True)
            except FileNotFoundError:  # a file system that makes its own folders, as /proc
                raise UserError(f"cannot write {target}: {folder.parent} takes no new folders") from None
            made.append(folder)
        _check_target(target, directory)
        remove_leftovers([target])
        with _lock_beside(temporary):
            if directory:
                temporary.mkdir()
            yield temporary
            flush(temporary)
            _put_in_place(temporary, target)
    except BaseException as problem:
        remove(temporary)
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # something else was put there meanwhile
                folder.rmdir()
        refusal = _write_refusal(problem, target)
        if refusal is None:
            raise
        raise refusal from problem


@contextlib.contextmanager
def temporary_beside(target: Path) -> Iterator[Path]:
    """Yield a path beside `target`, named as `atomic_path` would, for a file or folder that is removed when the block
    ends, or where the process is killed by the next one that writes to `target`.

    Raises UserError as `atomic_path` does.
    """
    temporary = _temporary(target)
    try:
        _check_target(target, False)
        remove_leftovers([target])
        with _lock_beside(temporary):
            yield temporary
    except OSError as problem:
        refusal = _write_refusal(problem, target)
        if refusal is None:
            raise
        raise refusal from problem
    finally:
        remove(temporary)


def target_of(temporary: Path) -> Path | None:
    """What a temporary file or folder of this name lies beside; None for a name that no temporary has.

    A killed process leaves such temporaries.
    """
    match = _TEMPORARY.fullmatch(temporary.name)
    return temporary.with_name(match[1] + (match[2] or "")) if match else None


def remove_leftovers(targets: Collection[Path]) -> None:
    """Remove what killed processes left beside these: temporaries of `atomic_path` whose lock nobody holds any more.

    What cannot be looked at or removed stays.
    """
    for folder in {target.parent for target in targets}:
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                temporary = folder / name.removesuffix(_LOCK)
                if temporary.name == name or target_of(temporary) not in targets:
                    continue
                with _lock(folder / name) as locked:
                    if locked:
                        remove(temporary)
                        remove(folder / name)


def check_place(target: Path) -> None:
    """Refuse a file that `atomic_path` could not write, before minutes are spent on its content. Raises UserError."""
    try:
        if target.is_dir():
            raise UserError(f"cannot write {target}: a folder of that name exists; choose a file name")
        existing = next(folder for folder in target.absolute().parents if folder.exists())
        # Named as the temporary will be, so that a name too long for it is found now.
        with tempfile.NamedTemporaryFile(dir=existing, prefix=f".{target.stem}.", suffix=f".tmp{target.suffix}"):
            pass
    except OSError as problem:
        reason = os.strerror(problem.errno).lower()
        raise UserError(f"cannot write {target}: {reason}; choose another file or folder") from None


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """Around what asks for files, or reads them: a path that the system refuses to look up or to open is a UserError.

    Such are names that are too long, and what lies in a folder that this user may not enter.
    """
    try:
        yield
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        raise UserError(f"cannot read {problem.filename}: {reason}; check the name and its permissions") from None


def user_cache() -> Path:
    """This user's folder for what can be made anew: $XDG_CACHE_HOME/vexpress, or ~/.cache/vexpress.

    Raises UserError for a user without a home, as in a container that runs under any number.
    """
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if folder.startswith("~"):
        raise UserError("this user has no home folder to remember things in: set HOME or XDG_CACHE_HOME to a folder")
    return Path(folder) / "vexpress"


def temporary_folder() -> str:
    """Where temporary files go. Raises UserError where none can be written, as in a read-only container."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        raise UserError("no folder for temporary files can be written: set TMPDIR to one that can") from None


def remove(path: Path) -> None:
    """Delete a file or a whole folder; nothing happens where it does not exist, or cannot."""
    if os.path.isdir(path) and not os.path.islink(path):  # pathlib's raise an exception for too long a name
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):  # asked first: a read-only file system refuses to remove even what is not there
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def flush(path: Path) -> None:
    """Force a file, or all files below a folder, to the disk: a rename may otherwise outlive its content."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content as 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.stem}.{secrets.token_hex(4)}.tmp{target.suffix}")


@contextlib.contextmanager
def _lock_beside(temporary: Path) -> Iterator[None]:
    """A file beside `temporary` that is locked while this process lives, where the file system has locks."""
    lock = temporary.with_name(temporary.name + _LOCK)
    with _lock(lock, create=True):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                remove(lock)


@contextlib.contextmanager
def _lock(file: Path, *, create: bool = False) -> Iterator[bool]:
    """Yields whether this process has the lock of `file`: no other one has it, and there are locks here.

    With `create` the file is made, and whoever found it before it was locked has removed what it found.
    """
    descriptor, locked = -1, False
    with contextlib.suppress(OSError):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT if create else os.O_RDWR, 0o666)
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX if create else fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
    try:
        yield locked
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _check_target(target: Path, directory: bool) -> None:
    parent = target.parent
    if not parent.is_dir():
        raise UserError(f"cannot write {target}: {parent} is not a folder; choose another path")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {target}: no permission to write in {parent}; choose another folder")
    if target.is_dir() and not directory:
        raise UserError(f"cannot write {target}: a folder of that name exists; choose a file name")
    if directory and target.exists() and not target.is_dir():
        raise UserError(f"cannot write {target}: a file of that name exists; remove it or choose another name")


def _write_refusal(problem: BaseException, target: Path) -> UserError | None:
    """The sentence for a full disk or a missing permission beside `target`; None for every other exception."""
    code = getattr(problem, "errno", None)
    if isinstance(problem, UserError) or code is None:
        return None
    if code in _DISK_FULL:
        return UserError(f"cannot write {target}: the disk is full; free some space or choose another disk")
    filename = getattr(problem, "filename", None)
    concerns_target = filename is None or Path(os.fsdecode(filename)).parent in (target.parent, *target.parents)
    if code in _NOT_ALLOWED and concerns_target:
        return UserError(f"cannot write {target}: {os.strerror(code).lower()}; choose another folder")
    return None


def _put_in_place(temporary: Path, target: Path) -> None:
    try:
        os.replace(temporary, target)
    except OSError:  # a folder with something in it, which may have come this moment
        if not (temporary.is_dir() and target.is_dir()):
            raise
        _swap_folders(temporary, target)
        remove(temporary)
    if os.name == "posix":
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _swap_folders(new: Path, old: Path) -> None:
    """Exchange two folders: in one step where Linux offers it, else in three renames."""
    if sys.platform == "linux" and _exchange(new, old):
        return
    aside = new.with_name(new.name + ".old")
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except BaseException:
        os.rename(aside, old)
        raise
    os.rename(aside, new)


def _exchange(one: Path, other: Path) -> bool:
    """renameat2(2) with RENAME_EXCHANGE; False where the C library or the file system lacks it."""
    at_current_folder, exchange_flag = -100, 2
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        return False
    return rename(at_current_folder, os.fsencode(one), at_current_folder, os.fsencode(other), exchange_flag) == 0
