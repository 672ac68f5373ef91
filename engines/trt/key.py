"""What makes an engine valid: decided from a small JSON file beside the plan, before anything is deserialised."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from vexpress_trt.engines.decoding import DecodeError, decode
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.trt.bindings import Binding

SIDECAR_VERSION = 2
_CHECKSUM = "sha256"


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on. Two engines with the same key can stand in for one another.

    `targets` are compute capabilities ("sm89"): of this machine's GPU, or those TensorRT-RTX built for ahead of time.
    `onnx` is the SHA-256 over the graph's files; `options` are builder settings that change the engine.
    """

    backend: str
    version: str
    cuda_major: int
    targets: tuple[str, ...]
    graph: str
    precision: str
    profile: str
    options: tuple[str, ...]
    onnx: str

    @property
    def folder(self) -> str:
        """The name of the folder that engines of one build share: all that is not the graph's own."""
        shared = {name: value for name, value in asdict(self).items() if name not in ("graph", "onnx", "profile")}
        digest = _digest(shared)[:12]
        return f"{self.backend}-{self.version}-{'-'.join(self.targets)}-{self.precision}-{digest}"


@dataclass(frozen=True)
class Sidecar:
    """The JSON beside a plan. `key` decides; `built` (when, on what, how long, by whom) only informs.

    `plan_sha256` and `plan_size` are of the plan's bytes; `bindings` are what the builder gave the plan, so that a
    program knows them before it deserialises.
    """

    sidecar_version: int
    key: EngineKey
    plan_sha256: str
    plan_size: int
    bindings: tuple[Binding, ...]
    built: dict[str, Any]

    def to_json(self) -> str:
        """The document, with a checksum of all else in it."""
        document = asdict(self)
        return json.dumps({**document, _CHECKSUM: _digest(document)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str, source: str) -> "Sidecar":
        """Parse and validate. Raises UserError that names `source` and the offending field."""
        try:
            document = json.loads(text)
            version = document.get("sidecar_version") if isinstance(document, dict) else None
            if version != SIDECAR_VERSION:
                raise DecodeError(f"sidecar_version is {version}, not {SIDECAR_VERSION}")
            if document.pop(_CHECKSUM, None) != _digest(document):
                raise DecodeError("its content is not what was written")
            return decode(Sidecar, document, "")
        except (ValueError, RecursionError, DecodeError) as problem:
            raise UserError(f"{source} is damaged ({problem}): remove it and build again") from None


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
