"""Values of a request's fields as JSON gives them: the dataclass is the single source of their types."""

import json
import os
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.request import GenerationRequest

_NAMES = {Path: "a path", str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _kind(spec: Field) -> type:
    return bool if isinstance(spec.default, bool) else spec.metadata["kind"] or str


_KINDS = {spec.name: _kind(spec) for spec in fields(GenerationRequest)}


def field_value(name: str, value: Any) -> Any:
    """The value that JSON gives the field `name`, in the field's type: paths are strings there, numbers may be whole.

    Ranges are `GenerationRequest.validate`'s. Raises UserError for a value of another type.
    """
    kind = _KINDS[name]
    expected = {Path: (str,), float: (float, int)}.get(kind, (kind,))
    if type(value) not in expected:  # not `isinstance`: true and false are no numbers
        shown = "a list or an object" if isinstance(value, list | dict) else json.dumps(value)[:60]
        raise UserError(f"{name}: expected {_NAMES[kind]}, got {shown}.")
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"{name}: a zero character has no place in it.")
    try:
        if isinstance(value, str):
            os.fsencode(value)
        return kind(value)
    except UnicodeEncodeError:
        raise UserError(f"{name}: half a character (a surrogate without its other half) has no place in it.") from None
    except OverflowError:
        raise UserError(f"{name}: {str(value)[:20]}... is too large.") from None
