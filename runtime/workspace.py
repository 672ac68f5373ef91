"""Where arrays that grow with the clip live: in memory, or in temporary files when memory is to be bounded."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from vexpress_trt.engines.closing import Closing
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import temporary_folder


class Workspace(Closing):
    """Allocates arrays by clip length. With `on_disk` they are memory-mapped files in a folder that goes at the end."""

    def __init__(self, *, on_disk: bool) -> None:
        self.on_disk = on_disk
        self._folder: tempfile.TemporaryDirectory | None = None
        if on_disk:
            folder = temporary_folder()
            self._folder = tempfile.TemporaryDirectory(prefix="vexpress-", dir=folder, ignore_cleanup_errors=True)
        self._count = 0

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of this shape and dtype, not initialised. Raises UserError where the disk is too small."""
        if self._folder is None:
            return np.empty(shape, dtype)
        self._count += 1
        path = Path(self._folder.name) / f"{self._count}.bin"
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            with path.open("wb") as file:
                file.truncate(size)
                _reserve(file.fileno(), size)
            raw = np.memmap(path, np.uint8, "r+", shape=(size,))
        except OSError as problem:
            raise UserError(
                f"{self._folder.name} has no room for {size / 2**20:.0f} MiB of working data ({problem.strerror}): "
                "free some space or set TMPDIR to a folder on another disk."
            ) from None
        return raw.view(dtype).reshape(shape)

    def keep(self, array: np.ndarray) -> np.ndarray:
        """The same values, on disk where this workspace is."""
        if self._folder is None:
            return array
        kept = self.allocate(array.shape, array.dtype)
        kept[...] = array
        return kept

    def spool(self, items: Iterable[tuple[int, np.ndarray]], count: int) -> Iterator[tuple[int, np.ndarray]]:
        """Pass (index, array) pairs on. On disk, all are taken before the first is given, so that what made them can be
        freed in between."""
        if self._folder is None:
            yield from items
            return
        kept: np.ndarray | None = None
        indices = []
        for index, array in items:
            if kept is None:
                kept = self.allocate((count, *array.shape), array.dtype)
            kept[len(indices)] = array
            indices.append(index)
        for position, index in enumerate(indices):
            yield index, np.array(kept[position])

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.cleanup()


def _reserve(descriptor: int, size: int) -> None:
    """Claim the blocks now: a full disk must be an error here, not a bus error at a later write."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
