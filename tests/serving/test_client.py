"""The Python client against a server that answers from a script."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs the client extra")

import grpc
from fake_triton import FRAMES, SUMMARY, answer, error, fake_triton, frame, info, picture, summary, whole_clip

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime import GenerationRequest
from vexpress_trt.runtime.tracks import save_track
from vexpress_trt.serving import protocol
from vexpress_trt.serving.client import Client, ServerBusy, ServerError


@pytest.fixture
def request_of(tmp_path: Path) -> GenerationRequest:
    """A request with inputs that only a fake would take."""
    (tmp_path / "face.png").write_bytes(b"a portrait")
    (tmp_path / "voice.wav").write_bytes(b"speech")
    return GenerationRequest(tmp_path / "face.png", tmp_path / "voice.wav", fps=25.0, seed=7)


def _take(script: Any, request: GenerationRequest, **settings: Any) -> list[Any]:
    with fake_triton(script) as server, Client(server.url, **settings) as client:
        return list(client.generate(request))


def test_frames_arrive_in_order_with_times_then_the_summary(request_of: GenerationRequest) -> None:
    with fake_triton(whole_clip) as server, Client(server.url, "secret") as client:
        generation = client.generate(request_of)
        assert (generation.info.frames, generation.info.fps) == (FRAMES, 25.0)
        with pytest.raises(RuntimeError, match="when all frames were taken"):
            _ = generation.summary
        frames = list(generation)
        assert [(f.index, f.time) for f in frames] == [(i, i / 25) for i in range(FRAMES)]
        assert all((f.image == picture(f.index)).all() for f in frames)
        assert generation.summary == SUMMARY
        assert len(generation.latency) == FRAMES and all(0 <= seconds < 5 for seconds in generation.latency)
    assert server.models == [protocol.STREAM_MODEL]
    assert server.metadata[0][protocol.AUTHORIZATION] == "Bearer secret"


def test_a_request_carries_the_files_and_every_setting(request_of: GenerationRequest) -> None:
    with fake_triton(whole_clip) as server, Client(server.url) as client:
        list(client.generate(replace(request_of, preset="fast")))
    inputs = server.inputs[0]
    assert (inputs["portrait"], inputs["audio"]) == (b"a portrait", b"speech")
    settings = json.loads(inputs["settings"][4:])
    assert (settings["fps"], settings["seed"], settings["preset"], settings["output"]) == (25.0, 7, "fast", "frames")
    assert set(settings) <= {*protocol.SETTING_FIELDS, protocol.OUTPUT}
    assert protocol.AUTHORIZATION not in server.metadata[0]


def test_a_track_takes_along_the_size_and_rate_that_lie_beside_it(
    request_of: GenerationRequest, tmp_path: Path
) -> None:
    save_track(tmp_path / "kps.npy", np.zeros((3, 3, 2), np.float32), (104, 72), 24.0)
    with fake_triton(whole_clip) as server, Client(server.url) as client:
        list(client.generate(replace(request_of, kps_path=tmp_path / "kps.npy")))
    assert server.inputs[0]["kps"] == (tmp_path / "kps.npy").read_bytes()
    settings = json.loads(server.inputs[0]["settings"][4:])
    assert (settings["kps_size"], settings["kps_fps"]) == ("104,72", 24.0)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("invalid: the portrait is empty.", UserError, "the portrait is empty."),
        ("[request id: 1] busy: 8 requests wait.", ServerBusy, "busy: 8 requests wait."),
        ("unauthorized: no token.", ServerError, "--token"),
        ("timeout: 60 s are over.", ServerError, "fewer steps"),
        ("failed: the worker died.", ServerError, "the server failed: the worker died."),
        ("Request for unknown model: 'vexpress'", ServerError, "unknown model"),
    ],
)
@pytest.mark.parametrize("first", [[], [info(), frame(0)]], ids=["at once", "after a frame"])
def test_every_refusal_is_a_sentence_and_an_exception_of_its_kind(
    request_of: GenerationRequest, text: str, kind: type, words: str, first: list[Any]
) -> None:
    with pytest.raises(UserError) as refused:
        _take(lambda inputs: iter([*first, error(text)]), request_of)
    assert type(refused.value) is kind
    assert words in str(refused.value)
    if kind is not UserError:
        assert refused.value.code == protocol.parse_refusal(text)[0]


BROKEN = {
    "ends early": ([info(), frame(0)], "ended the stream after 1 of 5 frames"),
    "ends before it began": ([], "ended the stream before the first frame"),
    "a summary too early": ([info(), frame(0), summary()], "1 frames instead of 5"),
    "a frame left out": ([info(), frame(0), frame(2)], "frame 2 where 1 of 5 was due"),
    "a frame twice": ([info(), frame(0), frame(0)], "frame 0 where 1 of 5 was due"),
    "too many frames": ([info(), *map(frame, range(FRAMES + 1))], "frame 5 where 5 of 5 was due"),
    "a frame of another size": ([info(), frame(0, picture(0, height=8))], "a frame of shape (8, 6, 3)"),
    "floats for pixels": ([info(), frame(0, np.zeros((4, 6, 3)))], "a frame of shape (4, 6, 3)"),
    "no description": ([frame(0)], "no description of the clip"),
    "a clip of negative width": ([info(width=-6)], "no description of the clip"),
    "a description that is no JSON": ([answer(info="{")], "no description of the clip"),
    "another version": ([info(version=2)], "version 2 instead of 1"),
    "other tensors": ([info(), answer(smile=np.zeros(1))], "an answer of smile"),
    "a summary of other fields": ([info(), *map(frame, range(FRAMES)), answer(summary="{}")], "a summary of other"),
    "connection lost": ([info(), frame(0), grpc.StatusCode.UNAVAILABLE], "broke after 1 of 5 frames (UNAVAILABLE"),
    "server's own trouble": ([grpc.StatusCode.INTERNAL], "broke before the first frame (INTERNAL"),
    "no Triton": ([grpc.StatusCode.UNIMPLEMENTED], "is no Triton server"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_stream_that_is_not_as_agreed_ends_in_a_sentence(request_of: GenerationRequest, case: str) -> None:
    answers, words = BROKEN[case]
    with pytest.raises(ServerError) as broken:
        _take(lambda inputs: iter(answers), request_of)
    assert words in str(broken.value)


@pytest.mark.parametrize("content", [b"", b"\0" * 71, b"\0" * 73], ids=["none", "too few", "too many"])
def test_bytes_that_do_not_fill_their_shape_are_noticed(request_of: GenerationRequest, content: bytes) -> None:
    short = frame(0)
    short.infer_response.raw_output_contents[0] = content
    with pytest.raises(ServerError, match=f"frame of {len(content)} bytes as UINT8 \\[4, 6, 3\\]"):
        _take(lambda inputs: iter([info(), short]), request_of)


def test_leaving_the_loop_stops_the_server(request_of: GenerationRequest) -> None:
    with fake_triton(_endless) as server, Client(server.url) as client:
        with closing(iter(client.generate(request_of))) as frames:
            next(frames)
        assert server.gone.wait(5)
        assert len(list(islice(client.generate(request_of), 3))) == 3  # the connection is still of use


def test_a_slow_consumer_holds_the_server_back(request_of: GenerationRequest) -> None:
    large = frame(0, np.zeros((1024, 1024, 3), np.uint8))

    def many(inputs: dict[str, bytes]) -> Iterator[Any]:
        yield info(frames=1000, width=1024, height=1024)
        for index in range(1000):
            large.infer_response.raw_output_contents[1] = index.to_bytes(8, "little")
            yield large

    with fake_triton(many) as server, Client(server.url) as client:
        with closing(iter(client.generate(request_of))) as frames:
            for _ in islice(frames, 3):
                pass
            time.sleep(1.0)
        assert server.sent <= 16  # of 3 MiB each


def test_a_time_limit_of_the_clients_own(request_of: GenerationRequest) -> None:
    def asleep(inputs: dict[str, bytes]) -> Iterator[Any]:
        yield info()
        time.sleep(2)

    with pytest.raises(ServerError, match="time limit passed after 0 of 5 frames") as late:
        _take(asleep, request_of, timeout=0.5)
    assert late.value.code == protocol.TIMEOUT


def test_no_server_at_the_address(request_of: GenerationRequest) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nothing else can answer there
        url = f"127.0.0.1:{taken.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ServerError, match=f"no server answers at {url}.*vexpress serve"):
            client.generate(request_of)


@pytest.mark.parametrize("url", ["", "http://localhost:8000", "localhost:port", "localhost:8001/v2", ":8001"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UserError, match="is not the address of a server"):
        Client(url)


@pytest.mark.parametrize("token", ["line\nline", "schlüssel"])
def test_a_token_that_no_header_carries(token: str) -> None:
    with pytest.raises(UserError, match="cannot travel in a header"):
        Client("localhost", token)


@pytest.mark.parametrize(
    ("url", "target"),
    [("localhost", "localhost:8001"), ("example.org:9", "example.org:9"), ("grpc://localhost:8001", "localhost:8001"),
     ("[::1]:9", "[::1]:9"), ("[::1]", "[::1]:8001"), ("grpcs://example.org", "TLS example.org:8001")],
)  # fmt: skip
def test_addresses(url: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a channel is made for, and whether it is encrypted."""
    made: list[str] = []
    plain, secure = grpc.insecure_channel, grpc.secure_channel

    def make_plain(address: str, *rest: Any) -> grpc.Channel:
        made.append(address)
        return plain(address, *rest)

    def make_secure(address: str, *rest: Any) -> grpc.Channel:
        made.append(f"TLS {address}")
        return secure(address, *rest)

    monkeypatch.setattr(grpc, "insecure_channel", make_plain)
    monkeypatch.setattr(grpc, "secure_channel", make_secure)
    Client(url).close()
    assert made == [target]


@pytest.mark.parametrize(
    "changes",
    [{"bundle": Path("x")}, {"backend": "torch"}, {"threads": 2}, {"dump_tensors": Path("x.npz")}, {"gpu_id": 1},
     {"gpu_memory": "8GB"},
     {"device": "cpu"}, {"dtype": "fp32"}, {"portrait_cache": "off"}, {"face_model_dir": Path("x")}],
    ids=lambda changes: next(iter(changes)),
)  # fmt: skip
def test_what_is_the_servers_own_cannot_be_asked_for(request_of: GenerationRequest, changes: dict[str, Any]) -> None:
    with Client("localhost:9") as client, pytest.raises(UserError, match=f"--{next(iter(changes))} is the server's"):
        client.generate(replace(request_of, **changes))


def test_files_are_looked_at_before_anything_is_sent(request_of: GenerationRequest, tmp_path: Path) -> None:
    with Client("localhost:9") as client:
        with pytest.raises(UserError, match="cannot read --audio_path .*none.wav: No such file"):
            client.generate(replace(request_of, audio_path=tmp_path / "none.wav"))
        (tmp_path / "empty.wav").touch()
        with pytest.raises(UserError, match="empty.wav is empty"):
            client.generate(replace(request_of, audio_path=tmp_path / "empty.wav"))
        with open(tmp_path / "large.png", "wb") as file:
            file.truncate(protocol.MAX_PORTRAIT_BYTES + 1)
        with pytest.raises(UserError, match="32 MiB at most"):
            client.generate(replace(request_of, reference_image_path=tmp_path / "large.png"))


def _endless(inputs: dict[str, bytes]) -> Iterator[Any]:
    return chain([info(frames=10**6)], map(_slow_frame, range(10**6)))


def _slow_frame(index: int) -> Any:
    time.sleep(0.01)
    return frame(index)
