"""A bundle's weight files as places in the checkpoints they were exported from, so that weights are stored once.

Exporting renames tensors, turns some of them and widens their type, but hardly computes anything: nearly every tensor
of a bundle is a stretch of bytes in a checkpoint file. `find_pieces` finds these stretches by content, `assemble` puts
the weight file together again, byte for byte, with NumPy alone.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Piece:
    """Bytes from `offset` of a weight file on: `shape` values of `stored` type from `start` of the file `source` on,
    their axes turned to the order `axes`, as values of `dtype`."""

    offset: int
    source: str
    start: int
    stored: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    dtype: str

    def content(self, source: bytes) -> bytes:
        """The piece's bytes; `source` is the whole file. Raises ValueError where the file is too short."""
        values = np.frombuffer(source, self.stored, math.prod(self.shape), self.start)
        return np.ascontiguousarray(values.reshape(self.shape).transpose(self.axes), self.dtype).tobytes()


def assemble(target: Path, size: int, pieces: Iterable[Piece], sources: Mapping[str, bytes]) -> None:
    """Write a weight file of `size` bytes; what no piece covers is zero."""
    content = bytearray(size)
    for piece in pieces:
        part = piece.content(sources[piece.source])
        content[piece.offset : piece.offset + len(part)] = part
    target.write_bytes(content)


def find_pieces(
    tensors: Sequence[tuple[int, np.ndarray]], sources: Mapping[str, bytes]
) -> tuple[list[Piece], list[tuple[int, np.ndarray]]]:
    """Where each tensor, given with its offset in the weight file, lies in the source files; and those that do not."""
    pieces, rest = [], []
    for offset, array in tensors:
        piece = next(_places(offset, array, sources), None)
        if piece is None:
            rest.append((offset, array))
        else:
            pieces.append(piece)
    return pieces, rest


def _places(offset: int, array: np.ndarray, sources: Mapping[str, bytes]) -> Iterator[Piece]:
    for stored in _narrower(array):
        for axes in permutations(range(array.ndim)):
            turned = np.ascontiguousarray(stored.transpose(axes))
            content = turned.tobytes()
            for name, source in sources.items():
                start = source.find(content)
                if start >= 0:
                    back = tuple(int(axis) for axis in np.argsort(axes))
                    yield Piece(offset, name, start, stored.dtype.name, turned.shape, back, array.dtype.name)


def _narrower(array: np.ndarray) -> list[np.ndarray]:
    """The same values in half precision, where it holds them exactly, and as they are."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    exact = array.dtype == np.float32 and np.array_equal(half.astype(np.float32), array)
    return [half, array] if exact else [array]
