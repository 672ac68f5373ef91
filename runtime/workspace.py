"""Where arrays that grow with the clip live: in memory, or in temporary files when memory is to be bounded."""

import os
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import temporary_folder


class Workspace:
    """Allocates arrays by clip length. With `on_disk` they are memory-mapped files without a name: they go with the
    arrays, however the process ends."""

    def __init__(self, *, on_disk: bool) -> None:
        self.on_disk = on_disk

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array of this shape and dtype, not initialised. Raises UserError where the disk is too small."""
        if not self.on_disk:
            return np.empty(shape, dtype)
        folder = temporary_folder()
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            with tempfile.TemporaryFile(prefix="vexpress-", dir=folder) as file:
                file.truncate(size)
                _reserve(file.fileno(), size)
                raw = np.memmap(file, np.uint8, "r+", shape=(size,))
        except OSError as problem:
            raise UserError(
                f"{folder} has no room for {size / 2**20:.0f} MiB of working data ({problem.strerror}): "
                "free some space or set TMPDIR to a folder on another disk."
            ) from None
        return raw.view(dtype).reshape(shape)

    def keep(self, array: np.ndarray) -> np.ndarray:
        """The same values, on disk where this workspace is."""
        if not self.on_disk:
            return array
        kept = self.allocate(array.shape, array.dtype)
        kept[...] = array
        return kept

    def spool(self, items: Iterable[tuple[int, np.ndarray]], count: int) -> Iterator[tuple[int, np.ndarray]]:
        """Pass (index, array) pairs on. On disk, all are taken before the first is given, so that what made them can be
        freed in between."""
        if not self.on_disk:
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


def _reserve(descriptor: int, size: int) -> None:
    """Claim the blocks now: a full disk must be an error here, not a bus error at a later write."""
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
