"""Remembered hashes: a big file is hashed once and then recognised by size, times and inode."""

import contextlib
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path, sha256_file, user_cache

_STAMP_NAME = ".verified.json"
_MAX_STAMP_BYTES = 64 << 20
_THREADS = 4


def file_hashes(root: Path, paths: list[str], *, remembered: bool = True) -> dict[str, str]:
    """SHA-256 of each file (relative to `root`), from the stamp where the file has not changed since it was hashed.

    A file counts as unchanged when size, modification time and inode are the same. With
    `remembered=False` everything is hashed anew. The stamp lies in `root`, or in the user's cache folder when `root`
    cannot be written; where neither can be written nothing is remembered.
    """
    known = _read_stamp(root) if remembered else {}
    identities = {path: _identity(root / path) for path in paths}
    hashes = {path: known[path][1] for path in paths if path in known and known[path][0] == identities[path]}
    todo = [path for path in paths if path not in hashes]
    if todo:
        with ThreadPoolExecutor(_THREADS) as pool:
            hashes |= zip(todo, pool.map(lambda path: sha256_file(root / path), todo), strict=True)
        # A file that changed while it was read is not remembered: its stamp would vouch for bytes nobody hashed.
        steady = [path for path in paths if _identity(root / path) == identities[path]]
        _write_stamp(root, {path: [identities[path], hashes[path]] for path in steady})
    return hashes


def _identity(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _stamp_paths(root: Path) -> tuple[Path, Path]:
    key = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:24]
    return root / _STAMP_NAME, user_cache() / "verified" / f"{key}.json"


def _read_stamp(root: Path) -> dict[str, list]:
    for path in _stamp_paths(root):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            if not path.is_file() or path.stat().st_size > _MAX_STAMP_BYTES:
                continue  # a bundle is from anywhere: a link to a device or a pipe would be read for ever
            stamp = json.loads(path.read_text())
            entries = stamp.items() if isinstance(stamp, dict) else ()
            return {key: entry for key, entry in entries if isinstance(entry, list) and len(entry) == 2}
    return {}


def _write_stamp(root: Path, stamp: dict[str, list]) -> None:
    for path in _stamp_paths(root):
        with contextlib.suppress(OSError, UserError):
            with atomic_path(path) as temporary:  # a name that could be guessed could be a link to another file
                temporary.write_text(json.dumps(stamp))
            return
