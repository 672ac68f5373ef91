"""torch.save's two file formats without torch: arrays out of untrusted files, and plain lists into new ones.

* zip (torch 1.6 and later): `<name>/data.pkl` holds the pickle, `<name>/data/<key>` the raw bytes of each storage,
  `<name>/byteorder` "little" or "big".
* legacy: four pickles in a row (magic number, protocol, system, object), a pickled list of storage keys, then for each
  key the element count as int64 and the raw bytes.
* A bare pickle (no magic number) is read too: tracks written with `pickle.dump` carry the same suffix.
"""

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vexpress_trt.runtime.array_records import (
    ArrayRecord,
    PickleRefused,
    StorageRecord,
    TensorRecord,
    element_count,
    is_shape,
)
from vexpress_trt.runtime.inert_pickle import read_pickle

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_DTYPES = {
    f"{kind}Storage": np.dtype(code)
    for kind, code in {
        "Half": "f2",
        "BFloat16": "u2",
        "Float": "f4",
        "Double": "f8",
        "Char": "i1",
        "Byte": "u1",
        "Short": "i2",
        "Int": "i4",
        "Long": "i8",
    }.items()
}
_MAX_DEPTH = 4
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)

FetchBytes = Callable[[StorageRecord], bytes | memoryview]


def read_torch_file(content: bytes, *, max_elements: int) -> Any:
    """The object of a torch.save'd file: nested lists and tuples (as lists) with NumPy arrays for arrays and tensors.

    `content` is the whole file; at most `max_elements` numbers are made of all its arrays and tensors together, however
    often the file refers to the same bytes. Nothing in the file is executed (see `inert_pickle`). Raises PickleRefused.
    """
    if content.startswith(b"PK\x03\x04"):
        return _read_zip(content, max_elements)
    return _read_legacy(content, max_elements)


def write_torch_zip(path: Path, value: Any) -> None:
    """Write plain Python lists, tuples, numbers and strings so that `torch.load` reads them, weights-only too.

    The file's bytes depend on `value` alone.
    """
    entries = {"data.pkl": pickle.dumps(value, protocol=2), "byteorder": b"little", "version": b"3\n"}
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(f"kps/{name}", _ZIP_DATE), data)


def _read_zip(content: bytes, max_elements: int) -> Any:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = set(archive.namelist())
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise PickleRefused("it is a zip file without torch's data.pkl")
            folder = pickles[0].removesuffix("data.pkl")
            value = read_pickle(io.BytesIO(_entry(archive, pickles[0], len(content))))
            order = "little"
            if folder + "byteorder" in names:
                order = _entry(archive, folder + "byteorder", 16).decode("ascii")

            def fetch(storage: StorageRecord) -> bytes:
                return _entry(archive, f"{folder}data/{storage.key}", len(content))

            return _Resolver(fetch, {"little": "<", "big": ">"}[order], max_elements).resolve(value)
    except _DAMAGE as problem:
        raise PickleRefused("it is damaged") from problem


_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    KeyError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
)


def _entry(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """The bytes of a zip entry; torch stores without compression, so an entry is never larger than the file."""
    with archive.open(name) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise PickleRefused("it unpacks to more than the file's own size")
    return data


def _read_legacy(content: bytes, max_elements: int) -> Any:
    stream = io.BytesIO(content)
    first = read_pickle(stream)
    if first != _LEGACY_MAGIC:
        return _Resolver(_no_storage, "<", max_elements).resolve(first)
    if read_pickle(stream) != _LEGACY_PROTOCOL:
        raise PickleRefused("it was written by an unknown version of torch")
    system, value, keys = read_pickle(stream), read_pickle(stream), read_pickle(stream)
    order = ">" if isinstance(system, dict) and system.get("little_endian") is False else "<"
    resolver = _Resolver(_no_storage, order, max_elements)
    resolver.fetch = _legacy_storages(memoryview(content)[stream.tell() :], keys, resolver.storages_of(value), order)
    return resolver.resolve(value)


def _legacy_storages(data: memoryview, keys: Any, storages: dict[str, StorageRecord], order: str) -> FetchBytes:
    """Where each storage lies in the tail of a legacy file: an int64 count, then the elements."""
    found: dict[str, memoryview] = {}
    position = 0
    for key in keys if isinstance(keys, list) else [None]:
        if not isinstance(key, str) or key not in storages or len(data) < position + 8:
            raise PickleRefused("it is damaged")
        (count,) = struct.unpack_from(order + "q", data, position)
        if count != storages[key].count:
            raise PickleRefused("it is damaged")
        size = count * _DTYPES[storages[key].element].itemsize
        found[key] = data[position + 8 : position + 8 + size]
        position += 8 + size

    def fetch(storage: StorageRecord) -> memoryview:
        if storage.key not in found:
            raise PickleRefused("it is damaged")
        return found[storage.key]

    return fetch


def _no_storage(_: StorageRecord) -> bytes:
    raise PickleRefused("it refers to a tensor that is not in it")


@dataclass
class _Resolver:
    """Turns records into arrays, each record once, within a budget of elements that bounds the memory taken."""

    fetch: FetchBytes
    byte_order: str
    elements_left: int
    resolved: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, np.ndarray] = field(default_factory=dict)

    def resolve(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, ArrayRecord | TensorRecord | list | tuple) and depth < _MAX_DEPTH:
            if id(value) not in self.resolved:
                self.resolved[id(value)] = self._make(value, depth)
            return self.resolved[id(value)]
        return value

    def storages_of(self, value: Any) -> dict[str, StorageRecord]:
        """Every storage that tensors inside `value` refer to, by key."""
        found: dict[str, StorageRecord] = {}
        seen: set[int] = set()
        level = [value]
        for _ in range(_MAX_DEPTH):
            level = [item for item in level if id(item) not in seen and not seen.add(id(item))]
            found |= {item.storage.key: item.storage for item in level if isinstance(item, TensorRecord)}
            level = [item for outer in level if isinstance(outer, list | tuple) for item in outer]
        return found

    def _make(self, value: Any, depth: int) -> Any:
        if isinstance(value, ArrayRecord):
            self._spend(value.shape)
            return value.to_array()
        if isinstance(value, TensorRecord):
            self._spend(value.shape)
            return self._tensor(value)
        return [self.resolve(item, depth + 1) for item in value]

    def _spend(self, shape: Any) -> None:
        self.elements_left -= element_count(shape) if is_shape(shape) else 0
        if self.elements_left < 0:
            raise PickleRefused("its arrays are larger than a key-point track can be")

    def _tensor(self, record: TensorRecord) -> np.ndarray:
        storage = self._storage(record.storage)
        if element_count(record.shape) == 0:
            return np.empty(record.shape, dtype=storage.dtype)
        last = record.offset + sum((n - 1) * stride for n, stride in zip(record.shape, record.strides, strict=True))
        if last >= storage.size:
            raise PickleRefused("a tensor in it reaches beyond its storage")
        strides = tuple(stride * storage.itemsize for stride in record.strides)
        return np.lib.stride_tricks.as_strided(storage[record.offset :], shape=record.shape, strides=strides).copy()

    def _storage(self, record: StorageRecord) -> np.ndarray:
        if record.key not in self.storages:
            dtype = _DTYPES[record.element].newbyteorder(self.byte_order)
            data = self.fetch(record)
            if len(data) != record.count * dtype.itemsize:
                raise PickleRefused("it is cut short")
            numbers = np.frombuffer(data, dtype=dtype)
            if record.element == "BFloat16Storage":
                numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
            self.storages[record.key] = numbers
        return self.storages[record.key]
