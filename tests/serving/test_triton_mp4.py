"""The model that answers with a whole MP4, where it hands a request's settings on."""

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from vexpress_trt.serving import protocol


class _Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


@pytest.fixture
def handed_on(monkeypatch: pytest.MonkeyPatch):
    """What becomes of a request's settings, from bytes to bytes, outside of Triton."""
    stand_in = SimpleNamespace(Tensor=_Tensor, TRITONSERVER_RESPONSE_COMPLETE_FINAL=1)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stand_in)
    modules = ["vexpress_trt.serving.triton_errors", "vexpress_trt.serving.triton_mp4"]
    for module in modules:
        monkeypatch.delitem(sys.modules, module, raising=False)
    model = importlib.import_module(modules[-1])

    def hand_on(text: bytes) -> bytes:
        given = _Tensor(protocol.SETTINGS, np.array([text], np.object_))
        return model._mp4_settings([given]).as_numpy()[0]

    yield hand_on
    for module in modules:
        sys.modules.pop(module, None)


def test_the_output_is_set(handed_on) -> None:
    assert json.loads(handed_on(b'{"fps": 25, "output": "frames"}')) == {"fps": 25, "output": "mp4"}


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b'{"fps": "' + b"1" * protocol.MAX_SETTINGS_BYTES + b'"}'])
def test_what_the_other_model_refuses_is_handed_on_as_it_is(handed_on, text: bytes) -> None:
    assert handed_on(text) == text
