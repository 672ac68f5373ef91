"""Read a pickle of arrays as data: nothing in the file is ever imported, called or executed.

A pickle is a small program for a stack machine. `pickle.Unpickler` runs it with real classes and functions, and even an
`Unpickler` with an allowlist lets the file choose the arguments of real constructors. This reader walks the same
opcodes (decoded by `pickletools.genops` of the standard library) and builds records: a name is only looked up in the
allowlist of `array_records`, and what it makes there is a record too.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from vexpress_trt.runtime.array_records import (
    AdmittedName,
    ArrayRecord,
    DtypeRecord,
    PickleRefused,
    StorageRecord,
    admit,
)


def read_pickle(stream: BinaryIO) -> Any:
    """Read one pickle from `stream`, leaving it just behind the pickle's end.

    Returns Python numbers, strings, bytes, lists, tuples and dicts with `ArrayRecord` and `TensorRecord` where arrays
    and tensors stand. Raises PickleRefused.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.step(opcode.name, argument)
        return machine.result()
    except PickleRefused:
        raise
    except (ValueError, KeyError, IndexError, TypeError, EOFError, OverflowError, AttributeError) as problem:
        raise PickleRefused("it is damaged") from problem


_MARK = object()
_ARGUMENT_IS_VALUE = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
_STORE = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_FETCH = frozenset({"GET", "BINGET", "LONG_BINGET"})
_NOTHING = frozenset({"PROTO", "FRAME", "STOP"})


@dataclass
class _Machine:
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _ARGUMENT_IS_VALUE:
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _STORE:
            self.memo[len(self.memo) if opcode == "MEMOIZE" else argument] = self.stack[-1]
        elif opcode in _FETCH:
            self.stack.append(self.memo[argument])
        elif opcode not in _NOTHING:
            handler = getattr(self, f"_{opcode.lower()}", None)
            if handler is None:
                raise PickleRefused(f"it uses {opcode}, which no list of arrays needs")
            handler(argument)

    def result(self) -> Any:
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            raise PickleRefused("it is damaged")
        return self.stack[0]

    def _since_mark(self) -> list[Any]:
        start = len(self.stack) - 1
        while self.stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise PickleRefused("it is damaged")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def _pop(self, _: Any = None) -> Any:
        return self.stack.pop()

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _tuple1(self, _: Any) -> None:
        self._last_as_tuple(1)

    def _tuple2(self, _: Any) -> None:
        self._last_as_tuple(2)

    def _tuple3(self, _: Any) -> None:
        self._last_as_tuple(3)

    def _last_as_tuple(self, count: int) -> None:
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _list(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    def _append(self, _: Any) -> None:
        item = self._pop()
        self._container(list).append(item)

    def _appends(self, _: Any) -> None:
        items = self._since_mark()
        self._container(list).extend(items)

    def _dict(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append({})
        self._put(items)

    def _setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._put([key, value])

    def _setitems(self, _: Any) -> None:
        self._put(self._since_mark())

    def _put(self, items: list[Any]) -> None:
        """Keys and values in turn into the dict on top. A key is a word or a number: to hash a tuple that is nested
        thousands deep would end the process."""
        if not all(isinstance(key, str | bytes | int) for key in items[::2]):
            raise PickleRefused("a key in it is neither a word nor a number")
        self._container(dict).update(zip(items[::2], items[1::2], strict=True))

    def _container(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise PickleRefused("it is damaged")
        return self.stack[-1]

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(admit(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        self.stack.append(admit(module, name))

    def _reduce(self, _: Any) -> None:
        arguments, name = self._pop(), self._pop()
        if not isinstance(name, AdmittedName) or name.make is None or not isinstance(arguments, tuple):
            raise PickleRefused("it calls something that is not an array's constructor")
        self.stack.append(name.make(*arguments))

    def _build(self, _: Any) -> None:
        state = self._pop()
        record = self.stack[-1]
        if not isinstance(record, ArrayRecord | DtypeRecord):
            raise PickleRefused("it sets the state of something that is not an array")
        record.set_state(state)

    def _binpersid(self, _: Any) -> None:
        identity = self._pop()
        if not (isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == "storage"):
            raise PickleRefused("it refers to something that is not a tensor's storage")
        kind, key, count = identity[1], identity[2], identity[4]
        if not (isinstance(kind, AdmittedName) and isinstance(key, str) and type(count) is int and count >= 0):
            raise PickleRefused("a tensor's storage in it has an unknown form")
        if len(identity) == 6 and identity[5] is not None:
            raise PickleRefused("a tensor in it is a view into another storage; save it with .clone()")
        self.stack.append(StorageRecord(kind.name, key, count))
