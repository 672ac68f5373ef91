"""What a clip is made from: one frozen dataclass, the source of the command line's flags as well.

This module imports nothing heavy: `vexpress generate --help` and every refusal it can give are answered from here.
"""

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vexpress_trt.engines.call_sizes import MAX_SIDE, MAX_WINDOW_BATCH, MIN_SIDE
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.precision import PRECISIONS
from vexpress_trt.runtime.presets import DEFAULT_PRESET, PRESETS, Preset

SOLVERS = ("ddim", "dpmpp_2m")
STRATEGIES = ("no_retarget", "fix_face", "offset_retarget", "naive_retarget")
TRACK_STRATEGIES = ("no_retarget", "offset_retarget", "naive_retarget")
DETECTORS = ("auto", "insightface", "mtcnn")
ENCODERS = ("auto", "libx264", "h264_nvenc")
BACKENDS = ("auto", "onnxruntime", "openvino", "torch", "tensorrt", "tensorrt-rtx")
DTYPES = ("auto", *PRECISIONS)
MAX_STEPS = 1000
_EXACT = PRESETS[DEFAULT_PRESET]


def _flag(
    default: Any,
    description: str,
    *,
    choices: tuple[str, ...] | None = None,
    kind: Any = None,
    metavar: str | None = None,
) -> Any:
    return field(
        default=default,
        metadata={"help": description, "choices": choices, "kind": kind, "metavar": metavar},
    )


@dataclass(frozen=True)
class GenerationRequest:
    """One clip to generate: inputs, model settings and how to run them. Field names are upstream's flag names.

    Fields of `Preset` that are left out, or None, take the preset's values when the request is made; the preset of an
    existing request is therefore not changed by `dataclasses.replace`.

    `validate` raises `UserError` for what can be refused without opening a file.
    """

    reference_image_path: Path = _flag(None, "portrait: one face, JPEG, PNG or WebP", kind=Path, metavar="IMAGE")
    audio_path: Path = _flag(
        None, "speech: WAV, MP3, M4A, FLAC, Opus, or the sound of a video", kind=Path, metavar="AUDIO"
    )
    output_path: Path | None = _flag(
        None, "the MP4 to write; - streams it to standard output", kind=Path, metavar="MP4"
    )
    kps_path: Path | None = _flag(
        None, "key-point track (.pth or .npy), see `vexpress extract`", kind=Path, metavar="TRACK"
    )
    bundle: Path | None = _flag(
        None,
        "bundle of exported graphs, see `vexpress export` (default: the model in the box)",
        kind=Path,
        metavar="DIR",
    )
    retarget_strategy: str | None = _flag(
        None, "how the head moves (default: no_retarget with a track, fix_face without)", choices=STRATEGIES
    )
    preset: str = _flag(
        DEFAULT_PRESET, "sets steps, solver, guidance and overlap where they are not given", choices=tuple(PRESETS)
    )
    num_inference_steps: int = _flag(
        None, f"denoising steps (default {_EXACT.num_inference_steps}, or the preset's)", kind=int
    )
    solver: str = _flag(
        None,
        f"ddim, or dpmpp_2m of second order (default {_EXACT.solver}, or the preset's)",
        choices=SOLVERS,
    )
    guidance_scale: float = _flag(
        None,
        f"classifier-free guidance; 1 or less runs the conditional half only (default {_EXACT.guidance_scale}, or the "
        "preset's)",
        kind=float,
    )
    guidance_interval: str | None = _flag(
        None,
        "guide only the steps in this share of all; others run the conditional half only (default 0,1, or the "
        "preset's)",
        metavar="LOW,HIGH",
    )
    reference_attention_weight: float = _flag(1.0, "weight of the portrait's attention, 0.9-1.0", kind=float)
    audio_attention_weight: float = _flag(1.0, "weight of the speech's attention, 1.0-3.0", kind=float)
    context_frames: int | None = _flag(None, "frames per window (default: the bundle's)", kind=int)
    context_overlap: int = _flag(
        None, f"frames that neighbouring windows share (default {_EXACT.context_overlap}, or the preset's)", kind=int
    )
    window_batch: int = _flag(
        1, "windows per denoiser call; above 1 all that can run at once do, and the first frame comes later", kind=int
    )
    seed: int = _flag(42, "seed of the noise", kind=int)
    fps: float = _flag(30.0, "frames per second of the output", kind=float)
    image_width: int | None = _flag(None, "output width, a multiple of 8 (default: the bundle's)", kind=int)
    image_height: int | None = _flag(None, "output height, a multiple of 8 (default: the bundle's)", kind=int)
    num_pad_audio_frames: int = _flag(2, "frames of audio context on each side", kind=int)
    save_gpu_memory: bool = _flag(
        False,
        "bound memory: keep the clip on disk, load the decoder when the denoiser is freed; where a --guidance_interval "
        "takes two denoisers, both stay loaded",
    )
    gpu_memory: str | None = _flag(
        None, "the most GPU memory to take, for instance 8GB; refused where a clip needs more", metavar="SIZE"
    )
    device: str = _flag(
        "auto",
        "where to run; auto: on the GPU that the bundle has engines for, else on the CPU",
        choices=("auto", "cpu", "cuda"),
    )
    gpu_id: int = _flag(0, "which GPU, where the clip runs on one", kind=int)
    dtype: str = _flag("auto", "arithmetic of the engines; auto: the backend's fast choice", choices=DTYPES)
    backend: str = _flag("auto", "what runs the graphs, see `vexpress doctor`", choices=BACKENDS)
    threads: int | None = _flag(
        None, "CPU threads (default: all cores of this process; of several workers each has its share)", kind=int
    )
    compat: str | None = _flag(None, "`upstream` reproduces the original's numbers exactly", choices=("upstream",))
    encoder: str = _flag("auto", "H.264 encoder; auto: the GPU's where it opens, else libx264", choices=ENCODERS)
    crop: str = _flag("face", "where a portrait of another shape is cropped", choices=("face", "center"))
    kps_size: str | None = _flag(None, "frame in which the track's pixels count (default 512,512)", metavar="W,H")
    detector: str = _flag(
        "auto", "face detector; auto: insightface where its models are, else MTCNN", choices=DETECTORS
    )
    face_model_dir: Path | None = _flag(None, "folder of insightface's models", kind=Path, metavar="DIR")
    portrait_cache: str | None = _flag(
        None, "folder where portraits are remembered, or off (default: in the user's cache folder)", metavar="DIR"
    )
    dump_tensors: Path | None = _flag(None, "also write latents and frames to this .npz", kind=Path, metavar="NPZ")

    def __post_init__(self) -> None:
        preset = PRESETS.get(self.preset, _EXACT)  # `validate` refuses an unknown one
        for spec in fields(Preset):
            if getattr(self, spec.name) is None:
                object.__setattr__(self, spec.name, getattr(preset, spec.name))

    @property
    def upstream(self) -> bool:
        """Whether the original's arithmetic is asked for where ours is better."""
        return self.compat == "upstream"

    @property
    def strategy(self) -> str:
        """The retarget strategy, with its default resolved."""
        return self.retarget_strategy or ("no_retarget" if self.kps_path else "fix_face")

    def guided(self, step: int) -> bool:
        """Whether step number `step` runs both halves."""
        low, high = self._guidance_shares
        return self.guidance_scale > 1.0 and low <= step / self.num_inference_steps < high

    @property
    def _guidance_shares(self) -> tuple[float, float]:
        if self.guidance_interval is None:
            return 0.0, 1.0
        try:
            low, high = (float(part) for part in str(self.guidance_interval).split(","))
        except ValueError:
            low, high = 1.0, 0.0
        if not 0.0 <= low < high <= 1.0:
            raise UserError(
                f"--guidance_interval {self.guidance_interval}: expected two rising numbers from 0 to 1, for instance "
                "0,0.6."
            )
        return low, high

    @property
    def track_size(self) -> tuple[int, int] | None:
        """`kps_size` as (width, height), or None where it is not given."""
        if self.kps_size is None:
            return None
        try:
            width, height = (int(part) for part in str(self.kps_size).split(","))
        except ValueError:
            width = height = 0
        if min(width, height) < 1:
            raise UserError(f"--kps_size {self.kps_size}: expected two positive numbers, for instance 512,512.")
        return width, height

    @property
    def gpu_memory_bytes(self) -> int | None:
        """`gpu_memory` in bytes, GB and GiB being 2**30, or None where it is not given."""
        if self.gpu_memory is None:
            return None
        found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d+)?)\s*([KMGT])i?B?\s*", str(self.gpu_memory), re.IGNORECASE)
        size = int(float(found[1]) * 2 ** (10 * (1 + "KMGT".index(found[2].upper())))) if found else 0
        if size < 1:
            raise UserError(f"--gpu_memory {self.gpu_memory}: expected a size such as 8GB or 6000MB.")
        return size

    def validate(self) -> None:
        """Raise `UserError` for every value that no input could make right."""
        for name in ("reference_image_path", "audio_path"):
            if getattr(self, name) is None:
                raise UserError(f"--{name} is missing: a clip needs a portrait and speech.")
        for name in ("reference_image_path", "audio_path", "kps_path"):
            if _same_file(getattr(self, name), self.output_path):
                raise UserError(f"--output_path {self.output_path}: it is --{name} as well; choose another name.")
        for spec in fields(self):
            choices, value = spec.metadata["choices"], getattr(self, spec.name)
            if choices and value is not None and value not in choices:
                raise UserError(f"--{spec.name} {value}: choose one of {', '.join(choices)}.")
        if self.retarget_strategy in TRACK_STRATEGIES and self.kps_path is None:
            raise UserError(
                f"--retarget_strategy {self.retarget_strategy} moves the head by a key-point track: give one with "
                "--kps_path, or use fix_face."
            )
        for name in ("image_width", "image_height"):
            value = getattr(self, name)
            if value is not None and (value % 8 or not MIN_SIDE <= value <= MAX_SIDE):
                raise UserError(f"--{name} {value}: must be a multiple of 8 from {MIN_SIDE} to {MAX_SIDE}.")
        self._in_range("num_inference_steps", 1, MAX_STEPS)
        self._in_range("guidance_scale", 0, 100)
        self._in_range("reference_attention_weight", 0, 10)
        self._in_range("audio_attention_weight", 0, 10)
        self._in_range("context_frames", 1, 32)
        self._in_range("context_overlap", 0, 31)
        self._in_range("window_batch", 1, MAX_WINDOW_BATCH)
        self._in_range("fps", 1, 120)
        self._in_range("num_pad_audio_frames", 0, 16)
        self._in_range("seed", 0, 2**64 - 1)
        self._in_range("threads", 1, 1024)
        self._in_range("gpu_id", 0, 1023)
        if self.context_frames is not None and self.context_overlap >= self.context_frames:
            raise UserError(
                f"--context_overlap {self.context_overlap}: must be smaller than --context_frames "
                f"{self.context_frames}."
            )
        if self.upstream and self.seed >= 2**32:
            raise UserError(f"--seed {self.seed}: with --compat upstream it must be below 2**32.")
        if self.upstream and _unlike_original(self):
            remedy = " (--preset exact)" if _unlike_original(PRESETS[self.preset]) else ""
            raise UserError(f"--compat upstream: the original solves by ddim and guides every step{remedy}.")
        _ = self.track_size, self._guidance_shares, self.gpu_memory_bytes

    def _in_range(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if value is not None and not low <= value <= high:  # also catches NaN
            raise UserError(f"--{name} {value}: must be from {low} to {high}.")


def _unlike_original(settings: GenerationRequest | Preset) -> bool:
    return settings.solver != "ddim" or settings.guidance_interval is not None


def _same_file(one: Path | None, other: Path | None) -> bool:
    if one is None or other is None:
        return False
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there
        return False
