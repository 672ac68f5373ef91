"""What JSON gives a field of the request becomes a value of the field's type, or a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.request_json import field_value


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("audio_path", '"a.wav"', Path("a.wav")),
        ("fps", "25", 25.0),
        ("fps", "23.976", 23.976),
        ("seed", "18446744073709551615", 2**64 - 1),
        ("save_gpu_memory", "true", True),
        ("preset", '"fast"', "fast"),
        ("context_frames", "12", 12),
    ],
)
def test_a_value_gets_the_fields_type(name: str, text: str, value: Any) -> None:
    found = field_value(name, json.loads(text))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("seed", "1", 'seed: expected a whole number, got "1".'),
        ("seed", True, "seed: expected a whole number, got true."),
        ("seed", 1.0, "seed: expected a whole number, got 1.0."),
        ("fps", "nan", 'fps: expected a number, got "nan".'),
        ("fps", False, "fps: expected a number, got false."),
        ("fps", 10**400, "fps: 10000000000000000000... is too large."),
        ("save_gpu_memory", 1, "save_gpu_memory: expected true or false, got 1."),
        ("preset", {"name": "fast"}, "preset: expected a text, got a list or an object."),
        ("audio_path", ["b.wav"], "audio_path: expected a path, got a list or an object."),
        ("audio_path", 1, "audio_path: expected a path, got 1."),
        ("audio_path", "b\0.wav", "audio_path: a zero character has no place in it."),
        ("seed", "x" * 100, f'seed: expected a whole number, got "{"x" * 59}.'),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        field_value(name, value)
    assert str(refusal.value) == sentence
