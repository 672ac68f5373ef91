"""The `settings` of a request: a JSON object from a stranger, checked name by name."""

import json
from dataclasses import dataclass
from typing import Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.runtime.request_json import field_value
from vexpress_trt.serving import protocol
from vexpress_trt.serving.errors import Refusal


@dataclass(frozen=True)
class Settings:
    """What a client asks for. `fields`: of the request; `output`: "frames" or "mp4"; `kps_fps`: frames per
    second of a .npy track, or None."""

    fields: dict[str, Any]
    output: str = protocol.OUTPUT_FRAMES
    kps_fps: float | None = None


def parse_settings(text: bytes) -> Settings:
    """What a client's JSON asks for.

    Raises Refusal (`invalid`) for anything but an object of known names and values of the right types. Ranges are
    checked by `check_request`.
    """
    if len(text) > protocol.MAX_SETTINGS_BYTES:
        raise _invalid(f"settings has {len(text)} bytes, more than {protocol.MAX_SETTINGS_BYTES}.")
    try:
        given = json.loads(text or b"{}")
    except (ValueError, RecursionError):
        raise _invalid("settings is not JSON.") from None
    if not isinstance(given, dict):
        raise _invalid("settings must be a JSON object.")
    output = given.pop(protocol.OUTPUT, protocol.OUTPUT_FRAMES)
    if output not in protocol.OUTPUTS:
        raise _invalid(f"output must be one of {', '.join(protocol.OUTPUTS)}.")
    rate = given.pop(protocol.KPS_FPS, None)
    if rate is not None and (type(rate) not in (int, float) or not 0 < rate < 1e6):
        raise _invalid(f"{protocol.KPS_FPS} must be a positive number.")
    return Settings({name: _checked(name, value) for name, value in given.items() if value is not None}, output, rate)


def check_request(settings: dict[str, Any], *, has_kps: bool) -> None:
    """Refuse (`invalid`) what no portrait and speech could make right."""
    try:
        GenerationRequest("portrait", "audio", kps_path="kps" if has_kps else None, **settings).validate()
    except UserError as problem:
        raise _invalid(str(problem)) from None


def _checked(name: str, value: Any) -> Any:
    if name in (*protocol.SERVER_FIELDS, *protocol.FILE_FIELDS):
        raise _invalid(f"{name} is the server's own and cannot be set by a request.")
    if name not in protocol.SETTING_FIELDS:
        known = ", ".join((*protocol.SETTING_FIELDS, protocol.OUTPUT, protocol.KPS_FPS))
        raise _invalid(f"there is no setting {name[:60]!r}; known: {known}.")
    try:
        return field_value(name, value)
    except UserError as problem:
        raise _invalid(str(problem)) from None


def _invalid(sentence: str) -> Refusal:
    return Refusal(protocol.INVALID, sentence)
