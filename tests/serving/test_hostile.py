"""Requests from strangers: every field broken in every way that the protocol lets through, and the server lives on."""

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from served import Served

pytest.importorskip("grpc", reason="needs the client extra")

import grpc

from vexpress_trt.runtime import GenerationRequest
from vexpress_trt.serving import client_wire as wire
from vexpress_trt.serving import protocol
from vexpress_trt.serving.errors import Refusal
from vexpress_trt.serving.job import Job
from vexpress_trt.serving.limits import Limits

COUNT = int(os.environ.get("VEXPRESS_FUZZ", "200"))
REPORT = os.environ.get("VEXPRESS_FUZZ_REPORT")  # a JSON file for the figures, where wanted
GROWTH = 128 << 20  # bytes that a few hundred requests may leave
SETTINGS = (  # text of `settings`, each to be refused
    b"\xff\xfe",
    b"{",
    b"[]",
    b"1e999",
    b"null",
    b'"frames"',
    b"[" * 50_000,
    b"{" + b'"a":{' * 9_000,
    b'{"output": "gif"}',
    b'{"nothing": 1}',
    b'{"bundle": "/"}',
    b'{"audio_path": "/etc/passwd"}',
    b'{"output_path": "/tmp/x.mp4"}',
    b'{"portrait_cache": "/"}',
    b'{"fps": NaN}',
    b'{"fps": 1e400}',
    b'{"fps": "30"}',
    b'{"fps": true}',
    b'{"fps": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"fps": 121}',
    b'{"seed": -1}',
    b'{"seed": 1.5}',
    b'{"seed": 99999999999999999999999}',
    b'{"image_width": 4096, "image_height": 4096}',
    b'{"image_width": 2048, "image_height": 2048}',
    b'{"image_width": 65}',
    b'{"num_inference_steps": 0}',
    b'{"num_inference_steps": 1000000}',
    b'{"window_batch": 1000}',
    b'{"guidance_interval": "a"}',
    b'{"kps_size": "0,0"}',
    b'{"kps_fps": -1}',
    b'{"kps_fps": "x"}',
    b'{"compat": "downstream"}',
    b'{"solver": ["ddim"]}',
    b'{"retarget_strategy": "fix_face\\u0000"}',
    b'{"crop": "\\ud800"}',
    b'{"save_gpu_memory": 1}',
    b'{"a' + b"a" * 70_000 + b'": 1}',
)


class Fuzzer:
    """Requests with one part broken; the same for the same number."""

    def __init__(self, request: GenerationRequest) -> None:
        self._files = {
            protocol.PORTRAIT: request.reference_image_path.read_bytes(),
            protocol.AUDIO: request.audio_path.read_bytes(),
            protocol.KPS: request.kps_path.read_bytes(),
        }
        self._settings = {"fps": 1.0, "num_inference_steps": 1, "guidance_scale": 1.0, "kps_size": "128,128"}

    def inputs(self, number: int) -> dict[str, bytes]:
        """What request `number` carries; most must be refused, a few survive their damage."""
        draw = random.Random(number)
        settings = json.dumps(self._settings).encode()
        files = dict(self._files)
        if number % 2:
            settings = SETTINGS[number // 2 % len(SETTINGS)]
        else:
            name = draw.choice(list(files))
            files[name] = draw.choice([_cut, _flipped, _noise, _nothing, _another])(draw, files, name)
        return {**files, protocol.SETTINGS: settings}


def _cut(draw: random.Random, files: dict[str, bytes], name: str) -> bytes:
    return files[name][: draw.randrange(len(files[name]))]


def _flipped(draw: random.Random, files: dict[str, bytes], name: str) -> bytes:
    data = bytearray(files[name])
    for _ in range(draw.randrange(1, 50)):
        data[draw.randrange(min(len(data), 2000))] = draw.randrange(256)
    return bytes(data)


def _noise(draw: random.Random, files: dict[str, bytes], name: str) -> bytes:
    return draw.randbytes(draw.randrange(1, 5000))


def _nothing(draw: random.Random, files: dict[str, bytes], name: str) -> bytes:
    return b""


def _another(draw: random.Random, files: dict[str, bytes], name: str) -> bytes:
    return files[draw.choice([other for other in files if other != name])]


# Messages that break Triton's own rules, made from a whole one.
MESSAGES = {
    "no inputs": lambda message: (message.ClearField("inputs"), message.ClearField("raw_input_contents")),
    "no audio": lambda message: (message.inputs.pop(1), message.raw_input_contents.pop(1)),
    "bytes missing": lambda message: message.raw_input_contents.pop(),
    "bytes of another shape": lambda message: message.inputs[0].shape.__setitem__(0, 2**40),
    "negative shape": lambda message: message.inputs[0].shape.__setitem__(0, -5),
    "two dimensions": lambda message: message.inputs[0].shape.append(1),
    "another type": lambda message: setattr(message.inputs[0], "datatype", "FP32"),
    "unknown input": lambda message: setattr(message.inputs[0], "name", "poison"),
    "input twice": lambda message: setattr(message.inputs[0], "name", "audio"),
    "unknown model": lambda message: setattr(message, "model_name", "../vexpress"),
    "string that is shorter than it says": lambda message: _replace_last(message, b"\xff\xff\xff\x7f{}"),
    "string that is longer than it says": lambda message: _replace_last(message, b"\x01\0\0\0{}{}{}"),
    "no string": lambda message: _replace_last(message, b""),
}


def _replace_last(message: Any, content: bytes) -> None:
    message.raw_input_contents[len(message.raw_input_contents) - 1] = content


def message_of(inputs: dict[str, bytes]) -> Any:
    """The message that carries `inputs` as they are."""
    message = wire.ModelInferRequest(model_name=protocol.STREAM_MODEL)
    for name, content in inputs.items():
        if name == protocol.SETTINGS:
            message.inputs.add(name=name, datatype="BYTES", shape=[1])
            content = len(content).to_bytes(4, "little") + content
        else:
            message.inputs.add(name=name, datatype="UINT8", shape=[len(content)])
        message.raw_input_contents.append(content)
    return message


def outcome(server: Served, message: Any) -> str:
    """The code of the answer: "ok" for a clip, "triton" for a refusal of Triton's own."""
    with grpc.insecure_channel(server.url, [("grpc.max_receive_message_length", -1)]) as channel:
        stream = channel.stream_stream(
            wire.STREAM_METHOD,
            request_serializer=wire.ModelInferRequest.SerializeToString,
            response_deserializer=wire.ModelStreamInferResponse.FromString,
        )
        metadata = [(protocol.AUTHORIZATION, protocol.BEARER + (server.token or ""))]
        errors = [answer.error_message for answer in stream(iter([message]), metadata=metadata, timeout=60)]
    text = next(filter(None, errors), None)
    if text is None:
        return "ok"
    return next((code for code in protocol.CODES if text.startswith(f"{code}: ")), "triton")


def test_nothing_that_is_sent_hurts_the_server(server: Served, short_clip: GenerationRequest) -> None:
    fuzzer, workers = Fuzzer(short_clip), server.workers()
    with server.client() as client:  # engines are loaded by the first clip
        assert len(list(client.generate(short_clip))) == 2
    outcomes: Counter[str] = Counter()
    memory = []
    for number in range(COUNT):
        code = outcome(server, message_of(fuzzer.inputs(number)))
        outcomes[code] += 1
        assert code in ("invalid", "ok"), (number, server.log())
        if number % 20 == 0:
            memory.append(server.memory())
    memory.append(server.memory())
    if REPORT:
        mib = [{name: round(size / 2**20, 1) for name, size in each.items()} for each in memory]
        Path(REPORT).write_text(json.dumps({"requests": COUNT, "outcomes": outcomes, "mib": mib}, indent=1) + "\n")
    assert outcomes["invalid"] > 0.7 * COUNT
    assert server.workers() == workers
    for process, size in memory[-1].items():
        assert size - memory[1][process] < GROWTH
    with server.client() as client:
        assert len(list(client.generate(short_clip))) == 2


@pytest.mark.parametrize("damage", MESSAGES)
def test_messages_that_are_none_are_refused(server: Served, short_clip: GenerationRequest, damage: str) -> None:
    message = message_of(Fuzzer(short_clip).inputs(0))
    MESSAGES[damage](message)
    assert outcome(server, message) in ("triton", "invalid")


@pytest.mark.parametrize("text", SETTINGS, ids=range(len(SETTINGS)))
def test_settings_that_are_none_are_refused_without_a_server(text: bytes) -> None:
    with pytest.raises(Refusal) as problem:
        Job.of(b"portrait", b"audio", None, text, _Nobody(), Limits())
    assert problem.value.code == protocol.INVALID
    assert len(problem.value.text.encode()) < 1500


class _Nobody:
    """Answers that nobody waits for."""
