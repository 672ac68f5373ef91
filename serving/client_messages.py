"""A request as the message that asks for it, and the tensors of an answer."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.runtime.tracks import load_track
from vexpress_trt.serving import client_wire as wire
from vexpress_trt.serving import protocol

_DTYPES = {"UINT8": np.dtype("u1"), "INT64": np.dtype("<i8"), "FP64": np.dtype("<f8")}
_LOCAL_FIELDS = ("output_path",)  # the server's own there, the client's own here


def message_of(request: GenerationRequest) -> Any:
    """The message that asks for a clip's frames. Raises UserError for files and settings that no server would take."""
    request.validate()
    for spec in fields(request):
        own = spec.name in protocol.SERVER_FIELDS and spec.name not in _LOCAL_FIELDS
        if own and getattr(request, spec.name) != spec.default:
            raise UserError(f"--{spec.name} is the server's own choice: leave it out with --server.")
    settings = {name: getattr(request, name) for name in protocol.SETTING_FIELDS}
    inputs = {
        protocol.PORTRAIT: _content("reference_image_path", request.reference_image_path, protocol.MAX_PORTRAIT_BYTES),
        protocol.AUDIO: _content("audio_path", request.audio_path, protocol.MAX_AUDIO_BYTES),
    }
    if request.kps_path is not None:
        track = load_track(request.kps_path)
        inputs[protocol.KPS] = _content("kps_path", request.kps_path, protocol.MAX_KPS_BYTES)
        # A track's frame size and rate lie in a file beside it.
        if settings["kps_size"] is None and track.size is not None:
            settings["kps_size"] = "{},{}".format(*track.size)
        settings[protocol.KPS_FPS] = track.fps
    settings[protocol.OUTPUT] = protocol.OUTPUT_FRAMES
    message = wire.ModelInferRequest(model_name=protocol.STREAM_MODEL)
    for name, content in inputs.items():
        message.inputs.add(name=name, datatype="UINT8", shape=[len(content)])
        message.raw_input_contents.append(content)
    text = json.dumps({name: value for name, value in settings.items() if value is not None}).encode()
    message.inputs.add(name=protocol.SETTINGS, datatype="BYTES", shape=[1])
    message.raw_input_contents.append(len(text).to_bytes(4, "little") + text)
    return message


def tensors_of(response: Any) -> dict[str, Any]:
    """A response's tensors by name: an array, or a str where one BYTES element is sent.

    Raises ValueError where bytes and shapes do not agree.
    """
    if len(response.outputs) != len(response.raw_output_contents):
        raise ValueError("tensors without their bytes")
    tensors: dict[str, Any] = {}
    for output, content in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            if len(content) < 4 or int.from_bytes(content[:4], "little") != len(content) - 4:
                raise ValueError(f"{output.name} of {len(content)} bytes")
            tensors[output.name] = content[4:].decode("utf-8", "replace")
            continue
        dtype, shape = _DTYPES.get(output.datatype), tuple(output.shape)
        if dtype is None or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError(f"{output.name} of {len(content)} bytes as {output.datatype} {list(shape)}")
        tensors[output.name] = np.frombuffer(content, dtype).reshape(shape)
    return tensors


def _content(flag: str, path: Path, most: int) -> bytes:
    try:
        size = Path(path).stat().st_size
        if size > most:
            raise UserError(f"--{flag} {path} has {size >> 20} MiB, a server takes {most >> 20} MiB at most.")
        content = Path(path).read_bytes()
    except OSError as problem:
        raise UserError(f"cannot read --{flag} {path}: {problem.strerror}.") from None
    if not content:
        raise UserError(f"--{flag} {path} is empty.")
    return content
