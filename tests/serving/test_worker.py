"""What a worker says to strangers, and keeps of a clip."""

import gc
import socket
import weakref
from types import SimpleNamespace
from typing import NoReturn

import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.serving import messages, worker
from vexpress_trt.serving.worker import Worker, without_paths

JOB = {"files": {"reference_image_path": "/tmp/job/portrait", "audio_path": "/tmp/job/audio.wav"}}


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("/tmp/job/portrait has no face", "the portrait has no face"),
        ("the audio /tmp/job/audio.wav is empty", "the audio is empty"),
        ("needs its models, and /srv/.models/l does not", "needs its models, and (a path of the server's) does not"),
        ("build with `vexpress build /srv/m.bundle --x`", "build with `vexpress build (a path of the server's) --x`"),
        ("--kps_size 0/0: frames/s, 30/1 or and/or", "--kps_size 0/0: frames/s, 30/1 or and/or"),
    ],
)
def test_inputs_are_named_and_no_path_is_told(sentence: str, told: str) -> None:
    assert without_paths(sentence, JOB) == told


@pytest.mark.parametrize(
    ("kind", "told"), [(UserError, "refused"), (RuntimeError, "refused"), (worker._Cancelled, "cancelled")]
)
def test_what_a_failed_clip_had_is_gone_before_the_next(
    kind: type[BaseException], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its frames and its exception refer to one another."""
    weights: list[weakref.ref] = []

    class Weights:
        pass

    def generate(self: Worker, job: dict) -> NoReturn:
        held = Weights()
        weights.append(weakref.ref(held))
        problem = kind()
        raise problem

    monkeypatch.setattr(Worker, "_generate", generate)
    monkeypatch.setattr(worker.log, "exception", lambda text: None)  # pytest keeps what is logged
    server, connection = socket.socketpair()
    gc.disable()
    try:
        with server, connection:
            messages.send(server, {"kind": "job", "files": {}})
            server.shutdown(socket.SHUT_WR)
            with pytest.raises(messages.Disconnected):
                Worker(connection, {}, None, SimpleNamespace(forget=lambda: None)).serve()
            assert [messages.receive(server)[0]["kind"] for _ in range(2)] == ["started", told]
    finally:
        gc.enable()
    assert weights[0]() is None
