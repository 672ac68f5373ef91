"""JSON to frozen dataclasses and back, with errors that name the offending field."""

import dataclasses
import types
import typing
from typing import Any


class DecodeError(ValueError):
    """A value does not fit its field; the message begins with the field's path, such as `graphs[3].inputs[0].dtype`."""


def decode(kind: Any, value: Any, where: str) -> Any:
    """Turn parsed JSON into `kind`: a dataclass, tuple[X, ...], dict[str, X], Literal, union or plain type.

    Every field must be present unless it has a default, and no other field may be. Raises DecodeError.
    """
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if origin is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices or isinstance(value, bool):
            raise DecodeError(f"{where} is {_show(value)}, not one of {', '.join(map(str, choices))}")
        return value
    if origin in (types.UnionType, typing.Union):
        return _decode_union(kind, value, where)
    if origin is tuple:
        element = typing.get_args(kind)[0]
        if not isinstance(value, list):
            raise DecodeError(f"{where} is {_show(value)}, not a list")
        return tuple(decode(element, item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict or kind is dict:
        element = typing.get_args(kind)[1] if origin is dict else Any
        if not isinstance(value, dict):
            raise DecodeError(f"{where} is {_show(value)}, not an object")
        return {key: decode(element, item, f"{where}[{key!r}]") for key, item in value.items()}
    return _decode_plain(kind, value, where)


def encode(value: Any) -> Any:
    """The inverse of `decode`: dataclasses to objects, tuples to lists."""
    if dataclasses.is_dataclass(value):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    return value


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:
    prefix = f"{where}." if where else ""
    if not isinstance(value, dict):
        raise DecodeError(f"{where or 'the document'} is {_show(value)}, not an object")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise DecodeError(f"{prefix}{name} is not a known field")
    arguments = {}
    for name, field in fields.items():
        if name in value:
            arguments[name] = decode(hints[name], value[name], prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DecodeError(f"{prefix}{name} is missing")
    return kind(**arguments)


def _decode_union(kind: Any, value: Any, where: str) -> Any:
    options = typing.get_args(kind)
    if value is None and type(None) in options:
        return None
    options = [option for option in options if option is not type(None)]
    if len(options) == 1:
        return decode(options[0], value, where)
    for option in options:
        try:
            return decode(option, value, where)
        except DecodeError:
            continue
    names = " or ".join(option.__name__ for option in options)
    raise DecodeError(f"{where} is {_show(value)}, not {names}")


def _decode_plain(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise DecodeError(f"{where} is {_show(value)}, too large for a number") from None
    if type(value) is not kind:
        raise DecodeError(f"{where} is {_show(value)}, not {kind.__name__}")
    return value


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
