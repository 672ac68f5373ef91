"""A Triton model repository that serves a bundle: two small models, and the pure-Python modules they consist of.

    REPO/vexpress/config.pbtxt, 1/model.py, 1/vexpress_trt/...      streams frames or chunks
    REPO/vexpress_mp4/config.pbtxt, 1/model.py, 1/vexpress_trt/...  answers with the whole MP4

Triton's own Python needs NumPy below 2 only; the workers run in the Python that `ServerSettings.python` names.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vexpress_trt.serving import protocol
from vexpress_trt.serving.limits import Limits

# What Triton's side imports; none of it needs more than the standard library, NumPy and Triton's own module.
MODULES = (
    "engines.call_sizes engines.errors engines.precision runtime.presets runtime.request runtime.request_json "
    "serving.protocol serving.errors serving.settings serving.messages serving.limits serving.job serving.metrics "
    "serving.worker_process serving.dispatcher serving.triton_errors serving.triton_stream serving.triton_mp4"
).split()
_PACKAGES = "engines runtime serving".split()

_MODEL = '''"""Triton's entry to vexpress-trt; the package lies beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from vexpress_trt.serving.{module} import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
'''
_INPUTS = (
    (protocol.PORTRAIT, "TYPE_UINT8", "-1", False),
    (protocol.AUDIO, "TYPE_UINT8", "-1", False),
    (protocol.KPS, "TYPE_UINT8", "-1", True),
    (protocol.SETTINGS, "TYPE_STRING", "1", True),
)
_STREAM_OUTPUTS = (
    (protocol.INFO, "TYPE_STRING", "1"),
    (protocol.FRAME, "TYPE_UINT8", "-1, -1, 3"),
    (protocol.CHUNK, "TYPE_UINT8", "-1"),
    (protocol.INDEX, "TYPE_INT64", "1"),
    (protocol.TIME, "TYPE_FP64", "1"),
    (protocol.MADE_AT, "TYPE_FP64", "1"),
    (protocol.SUMMARY, "TYPE_STRING", "1"),
)
_MP4_OUTPUTS = ((protocol.MP4, "TYPE_UINT8", "-1"), (protocol.SUMMARY, "TYPE_STRING", "1"))


@dataclass(frozen=True)
class ServerSettings:
    """What a repository's streaming model is told.

    python: the interpreter of the workers. workers: for each, the request's fields that are the server's own (`bundle`,
    `backend`, `threads`, ...). control: a folder through which `vexpress serve` drains it.
    """

    python: str
    workers: tuple[dict[str, Any], ...]
    limits: Limits
    control: str | None = None


def write_models(folder: Path, settings: ServerSettings) -> None:
    """Write both models into an existing folder."""
    parameter = json.dumps(asdict(settings), ensure_ascii=False)
    _write_model(
        folder / protocol.STREAM_MODEL,
        "triton_stream",
        config(protocol.STREAM_MODEL, _STREAM_OUTPUTS, decoupled=True, parameter=parameter),
    )
    _write_model(folder / protocol.MP4_MODEL, "triton_mp4", config(protocol.MP4_MODEL, _MP4_OUTPUTS))


def config(
    name: str, outputs: Sequence[tuple[str, str, str]], *, decoupled: bool = False, parameter: str | None = None
) -> str:
    """A config.pbtxt of the Python backend with the protocol's inputs."""
    inputs = [
        f'input {{ name: "{tensor}" data_type: {kind} dims: [{dims}]{" optional: true" if optional else ""} }}'
        for tensor, kind, dims, optional in _INPUTS
    ]
    return "\n".join(
        [
            f'name: "{name}"',
            'backend: "python"',
            "max_batch_size: 0",
            *inputs,
            *(f'output {{ name: "{tensor}" data_type: {kind} dims: [{dims}] }}' for tensor, kind, dims in outputs),
            "instance_group { kind: KIND_CPU count: 1 }",
            *(["model_transaction_policy { decoupled: true }"] if decoupled else []),
            *([] if parameter is None else [_parameter("vexpress", parameter)]),
            "",
        ]
    )


def _parameter(key: str, value: str) -> str:
    # A JSON string of printable characters is a protobuf text string as well.
    return f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value, ensure_ascii=False)} }} }}'


def _write_model(folder: Path, module: str, configuration: str) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(configuration, encoding="utf-8")
    (version / "model.py").write_text(_MODEL.format(module=module), encoding="utf-8")
    for package in _PACKAGES:
        (version / "vexpress_trt" / package).mkdir(parents=True)
        (version / "vexpress_trt" / package / "__init__.py").touch()
    for name in MODULES:
        source = find_spec(f"vexpress_trt.{name}").origin
        shutil.copyfile(source, version.joinpath("vexpress_trt", *name.split(".")).with_suffix(".py"))
