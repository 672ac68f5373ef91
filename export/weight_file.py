"""External ONNX weights: one file per network, in which equal tensors are stored once."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

# Smaller tensors stay inside the .onnx file: an entry that points elsewhere would be about as large as they are.
INLINE_BYTES = 1024

# Large tensors begin on a memory page, so that engines can map the file instead of reading it.
_PAGE_BYTES = 4096
_SMALL_ALIGNMENT = 64
_LARGE_BYTES = 64 << 10


class WeightFile:
    """Appends tensors to a file and remembers, by content, what it already holds.

    Graphs that share weights (the two denoisers) are given the same object and so the same bytes. Nothing but the
    tensor at hand is held in memory.
    """

    def __init__(self, path: Path, stream: BinaryIO):
        self.path = path
        self._stream = stream
        self._places: dict[bytes, tuple[int, int]] = {}

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._stream.tell()

    def add(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Store a tensor, unless its bytes are there already, and return the reference to it."""
        content = tensor.tobytes()
        digest = hashlib.sha256(content).digest()
        if digest not in self._places:
            self._places[digest] = (self._append(content), len(content))
        offset, length = self._places[digest]
        return ir.ExternalTensor(
            self.path.name,
            offset,
            length,
            tensor.dtype,
            shape=ir.Shape(tensor.shape),
            name=tensor.name,
            base_dir=self.path.parent,
        )

    def _append(self, content: bytes) -> int:
        alignment = _PAGE_BYTES if len(content) >= _LARGE_BYTES else _SMALL_ALIGNMENT
        self._stream.write(bytes(-self._stream.tell() % alignment))
        offset = self._stream.tell()
        self._stream.write(content)
        return offset


@contextmanager
def weight_file(path: Path) -> Iterator[WeightFile]:
    """A new, empty weight file at `path`, closed at the end of the block; its folder must exist."""
    with open(path, "wb") as stream:
        yield WeightFile(path, stream)


def move_to_file(model: ir.Model, weights: WeightFile) -> None:
    """Replace the model's larger initializers by references into the weight file."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes > INLINE_BYTES:
            value.const_value = weights.add(tensor)
