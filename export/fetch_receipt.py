"""A record of fetched files, so that a second run need not read gigabytes to know they are right."""

import json
from pathlib import Path

from vexpress_trt.engines.files import atomic_path
from vexpress_trt.export.download import RemoteFile

RECEIPT_NAME = "vexpress-fetch.json"


class Receipt:
    """The files of one checkpoints folder that were written or verified by a fetch, by relative path."""

    def __init__(self, entries: dict[str, dict[str, object]]) -> None:
        self.entries = entries

    @classmethod
    def read(cls, folder: Path) -> "Receipt":
        """The folder's receipt; empty where there is none or where it is damaged (then files are hashed again)."""
        try:
            entries = json.loads((folder / RECEIPT_NAME).read_text())["files"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            entries = {}
        valid = isinstance(entries, dict) and all(isinstance(entry, dict) for entry in entries.values())
        return cls(dict(entries) if valid else {})

    def knows(self, path: Path, file: RemoteFile) -> bool:
        """Whether the file was verified against this hash before and has not been touched since."""
        entry, status = self.entries.get(file.target, {}), path.stat()
        stamp = (entry.get("digest"), entry.get("size"), entry.get("mtime_ns"))
        return stamp == (file.digest, status.st_size, status.st_mtime_ns) and status.st_size == file.size

    def add(self, folder: Path, file: RemoteFile) -> None:
        """Record a file that is in place and verified."""
        self.entries[file.target] = {
            "repository": file.repository,
            "revision": file.revision,
            "path": file.path,
            "digest": file.digest,
            "size": file.size,
            "mtime_ns": (folder / file.target).stat().st_mtime_ns,
        }

    def write(self, folder: Path) -> None:
        """Put the record into the folder. Raises UserError when the folder cannot be written."""
        with atomic_path(folder / RECEIPT_NAME) as path:
            path.write_text(json.dumps({"files": self.entries}, indent=1, sort_keys=True) + "\n")
