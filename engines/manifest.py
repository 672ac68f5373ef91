"""The manifest: everything a program needs to know about a bundle, as one validated JSON document."""

import json
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from vexpress_trt.engines.decoding import DecodeError, decode, encode
from vexpress_trt.engines.dims import is_dimension
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.precision import Precision

SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"

DType = Literal["float32", "float16", "bfloat16", "int64"]

PRECISION_DTYPE: dict[str, DType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph.

    A dimension is a number, a symbol (`"h"`) or an expression of symbols (`"8*h"`, see `engines.dims`); a symbol means
    the same size everywhere in its graph.
    """

    name: str
    dtype: DType
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One graph at one precision: `path` and `files` are relative to the bundle, `files` includes `path`.

    `parity` holds the largest differences to the torch module that the exporter measured, or None if it did not.
    """

    name: str
    precision: Precision
    path: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: tuple[str, ...]
    parity: dict[str, Any] | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model. Image sizes are pixels, the audio window counts rows of the encoder's output."""

    image_width: int
    image_height: int
    context_frames: int
    max_context_frames: int
    latent_channels: int
    vae_scale_factor: int
    latent_scaling: float
    feature_channels: int
    cross_attention_dim: int
    audio_hidden_dim: int
    audio_window_rows: int
    audio_tokens: int
    audio_encoder_layers: int
    audio_sample_rate: int
    attention_blocks: int


@dataclass(frozen=True)
class SchedulerConfig:
    """The diffusion schedule the model was trained with."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    rescale_zero_terminal_snr: bool = True
    timestep_spacing: str = "trailing"
    prediction_type: str = "v_prediction"


@dataclass(frozen=True)
class FileRecord:
    """What a file of the bundle must be: its SHA-256 (hexadecimal) and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """The whole document. `networks` holds the checkpoints' own configurations (`unet`, `vae`, `wav2vec2`, ...), from
    which the torch engine rebuilds the modules; `provenance` says where the weights came from."""

    schema_version: int
    producer: str
    model: ModelConfig
    scheduler: SchedulerConfig
    graphs: tuple[GraphSpec, ...]
    files: dict[str, FileRecord]
    licence: str
    provenance: dict[str, Any]
    random_weights: bool
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The document as indented JSON. Raises ValueError when it would not pass its own validation."""
        try:
            _check(self)
        except DecodeError as problem:
            raise ValueError(f"this manifest is not valid: {problem}") from None
        return json.dumps(encode(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str, source: str) -> "Manifest":
        """Parse and validate; `source` names the file in errors. Raises UserError that names the offending field."""
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise UserError(f"{source} is not readable JSON ({problem}): export the bundle again") from None
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION and isinstance(version, int):
            raise UserError(
                f"{source} is a bundle of schema {version}, this program reads {SCHEMA_VERSION}: re-export it with "
                "`vexpress export --checkpoints DIR --bundle NEW.bundle`"
            )
        try:
            manifest = decode(Manifest, document, "")
            _check(manifest)
        except DecodeError as problem:
            raise UserError(f"{source} is damaged: {problem}; export the bundle again") from None
        return manifest


def is_reference_tensor(name: str) -> bool:
    """Whether a tensor of this name goes from the reference graph to the denoiser: a key, a value, or (in a plain
    bundle) the tap that both are projected from."""
    return name.startswith(("key_", "value_", "tap_"))


def is_safe_path(path: str) -> bool:
    """Whether a relative path with forward slashes stays inside the bundle folder, and can be shown as it is."""
    pure = PurePosixPath(path)
    normal = str(pure) == path and "\\" not in path and path.isprintable() and ":" not in path
    return normal and path not in ("", ".") and not pure.is_absolute() and ".." not in pure.parts


def _check(manifest: Manifest) -> None:
    """Rules that types alone do not express. Raises DecodeError."""
    if manifest.schema_version != SCHEMA_VERSION:
        raise DecodeError(f"schema_version is {manifest.schema_version}, not {SCHEMA_VERSION}")
    _check_model(manifest.model)
    _check_scheduler(manifest.scheduler)
    for path, record in manifest.files.items():
        where = f"files[{path!r}]"
        if not is_safe_path(path):
            raise DecodeError(f"{where} does not name a file inside the bundle")
        if not re.fullmatch(r"[0-9a-f]{64}", record.sha256):
            raise DecodeError(f"{where}.sha256 is not 64 hexadecimal digits")
        if record.size < 0:
            raise DecodeError(f"{where}.size is negative")
    seen = set()
    for index, graph in enumerate(manifest.graphs):
        where = f"graphs[{index}]"
        _check_graph(graph, where, manifest.files)
        if (graph.name, graph.precision) in seen:
            raise DecodeError(f"{where} repeats {graph.name} {graph.precision}")
        seen.add((graph.name, graph.precision))


def _check_model(model: ModelConfig) -> None:
    for name, value in vars(model).items():
        if not 0 < value < 2**31:
            raise DecodeError(f"model.{name} is {value}, not a positive number")
    for name in ("image_width", "image_height"):
        if getattr(model, name) % model.vae_scale_factor:
            raise DecodeError(f"model.{name} is {getattr(model, name)}, not a multiple of {model.vae_scale_factor}")
    if model.context_frames > model.max_context_frames:
        raise DecodeError(f"model.context_frames is {model.context_frames}, above {model.max_context_frames}")


def _check_scheduler(scheduler: SchedulerConfig) -> None:
    if scheduler.num_train_timesteps <= 0:
        raise DecodeError(f"scheduler.num_train_timesteps is {scheduler.num_train_timesteps}, not positive")
    if not 0 < scheduler.beta_start < scheduler.beta_end < 1:
        raise DecodeError("scheduler.beta_start and scheduler.beta_end are not rising values between 0 and 1")


def _check_graph(graph: GraphSpec, where: str, files: dict[str, FileRecord]) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", graph.name):
        raise DecodeError(f"{where}.name is {graph.name!r}, not a lower-case identifier")
    if graph.path not in graph.files:
        raise DecodeError(f"{where}.files does not list {graph.path!r}, the graph itself")
    for index, path in enumerate(graph.files):
        if path not in files:
            raise DecodeError(f"{where}.files[{index}] is {path!r}, which is not among the bundle's files")
    for side in ("inputs", "outputs"):
        specs: tuple[TensorSpec, ...] = getattr(graph, side)
        names = [spec.name for spec in specs]
        if not names or len(set(names)) != len(names):
            raise DecodeError(f"{where}.{side} is empty or repeats a name")
        for number, spec in enumerate(specs):
            for axis, dimension in enumerate(spec.shape):
                if not is_dimension(dimension):
                    raise DecodeError(f"{where}.{side}[{number}].shape[{axis}] is {dimension!r}, not a dimension")
