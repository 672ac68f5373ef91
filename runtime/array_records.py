"""What a pickle of arrays may contain, as inert records: names on an allowlist, arrays, tensors and their storages.

The records hold what the file said; nothing is allocated or viewed until `ArrayRecord.to_array` or the torch file
reader has checked it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


class PickleRefused(Exception):
    """The pickle is damaged or asks for something that arrays do not need; the message says what, without the file."""


@dataclass
class DtypeRecord:
    """A NumPy dtype as pickled: a code such as "f4" and, once its state arrived, a byte order."""

    code: str
    byte_order: str = "<"

    def set_state(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) >= 2 and state[1] in ("<", ">", "=", "|")):
            raise PickleRefused("a number type in it has an unknown form")
        self.byte_order = state[1]

    def to_dtype(self) -> np.dtype:
        return np.dtype(self.byte_order + self.code)


@dataclass
class ArrayRecord:
    """A NumPy array or scalar as pickled; `to_array` checks shape, type and byte count before any memory is taken."""

    shape: Any = None
    dtype: Any = None
    data: Any = None
    fortran_order: bool = False

    def set_state(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise PickleRefused("an array in it has an unknown form")
        _, self.shape, self.dtype, self.fortran_order, self.data = state

    def to_array(self) -> np.ndarray:
        if not isinstance(self.dtype, DtypeRecord) or not is_shape(self.shape):
            raise PickleRefused("an array in it has no shape or number type")
        dtype = self.dtype.to_dtype()
        count = element_count(self.shape)
        if not isinstance(self.data, bytes | bytearray | str) or len(self.data) != count * dtype.itemsize:
            raise PickleRefused("an array in it does not have the bytes its shape needs")
        # Python 2 wrote bytes as text.
        data = self.data.encode("latin-1") if isinstance(self.data, str) else self.data
        flat = np.frombuffer(data, dtype=dtype, count=count)
        return flat.reshape(self.shape, order="F" if self.fortran_order else "C")


@dataclass(frozen=True)
class StorageRecord:
    """A torch storage that lies elsewhere in the file: `element` is a name such as "FloatStorage"."""

    element: str
    key: str
    count: int


@dataclass(frozen=True)
class TensorRecord:
    """A torch tensor: a strided view of a storage, offset and strides in elements."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def is_shape(value: Any) -> bool:
    """Whether `value` is a tuple of at most 4 integers >= 0."""
    return isinstance(value, tuple) and len(value) <= 4 and all(type(n) is int and 0 <= n < 2**40 for n in value)


def element_count(shape: tuple[int, ...]) -> int:
    """The product of the dimensions, as a Python integer that cannot overflow."""
    count = 1
    for n in shape:
        count *= n
    return count


@dataclass(frozen=True)
class AdmittedName:
    """A name from the allowlist; `make` builds a record from the arguments the pickle passes."""

    name: str
    make: Callable[..., Any] | None = None


_NUMBER_CODES = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"})


def _make_dtype(code: Any, *_: Any) -> DtypeRecord:
    if not isinstance(code, str) or code not in _NUMBER_CODES:
        raise PickleRefused("it holds an array that is not of numbers")
    return DtypeRecord(code)


def _make_bytes(text: Any = "", encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise PickleRefused("it holds text where bytes are expected")
    return text.encode("latin-1")


def _make_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> TensorRecord:
    well_formed = isinstance(storage, StorageRecord) and type(offset) is int and offset >= 0
    if not (well_formed and is_shape(shape) and is_shape(strides) and len(shape) == len(strides)):
        raise PickleRefused("a tensor in it has an unknown form")
    return TensorRecord(storage, offset, shape, strides)


def _make_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any] | None] = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _make_dtype,
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: ArrayRecord(),
    ("numpy._core.multiarray", "scalar"): lambda dtype, data: ArrayRecord((), dtype, data),
    ("numpy._core.numeric", "_frombuffer"): lambda data, dtype, shape, order: ArrayRecord(
        shape, dtype, data, order == "F"
    ),
    ("_codecs", "encode"): _make_bytes,
    ("__builtin__", "bytes"): _make_bytes,
    ("builtins", "bytes"): _make_bytes,
    ("collections", "OrderedDict"): lambda: {},
    ("torch._utils", "_rebuild_tensor"): _make_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _make_tensor,
    ("torch._utils", "_rebuild_parameter"): _make_parameter,
} | {
    ("torch", f"{kind}Storage"): None
    for kind in ("Half", "BFloat16", "Float", "Double", "Char", "Byte", "Short", "Int", "Long")
}


def admit(module: Any, name: Any) -> AdmittedName:
    """The record for a name in a module, on the allowlist; NumPy 1 calls `numpy._core` `numpy.core`.

    Raises PickleRefused for every other name, and for what is not a name at all.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise PickleRefused("it is damaged")
    if module.startswith("numpy.core."):
        module = "numpy._core." + module.removeprefix("numpy.core.")
    if (module, name) not in _CONSTRUCTORS:
        shown = f"{module}.{name}"[:80]
        shown = shown if shown.isprintable() else "an unprintable name"
        raise PickleRefused(f"it asks for {shown}, which no list of arrays needs and which may be harmful")
    return AdmittedName(name, _CONSTRUCTORS[module, name])
