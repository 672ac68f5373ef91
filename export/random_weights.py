"""Checkpoints with random weights in the official layout: for tests, measurements, and a demo that shows noise."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path, looking
from vexpress_trt.export import checkpoints as official
from vexpress_trt.export.nets.layout import expected_shapes
from vexpress_trt.export.nets.library import audio_encoder_shapes, vae_shapes
from vexpress_trt.export.nets.motion import PositionTable
from vexpress_trt.export.random_model import RANDOM_MODELS, RandomModel

Shapes = Mapping[str, tuple[int, ...]]

# Standard deviation of a layer's output for inputs of deviation 1: the first pattern that a weight's name has decides.
# Around 1 where the signal must pass unweakened (inputs, shortcuts, resampling), above it before or behind an
# activation that halves the signal, below it where a branch is added to the residual stream, which would else grow.
_GAINS: tuple[tuple[str, float], ...] = (
    (r"v_kps_guider/", 1.7),
    (r"wav2vec2/feature_extractor\.", 1.6),
    (r"vae/encoder\.conv_out", 8.0),  # latents of the deviation that the scaling 0.18215 makes 1
    (r"vae/decoder\.conv_out", 0.7),
    (r"/conv_out\.weight", 1.0),
    (r"to_(q|k|kv)\.weight|[qk]_proj\.weight", 1.2),  # attention that prefers some tokens to others
    (r"time_embedding|time_emb_proj|conv_in\.|shortcut|samplers|quant_conv|proj_in|feature_projection", 1.0),
    (r"audio_projection/", 1.0),
    (r"", 0.6),
)
_BIAS = 0.1
_NORM_SPREAD = 0.1
_TABLE = 0.3  # learned positions against features of deviation 1
_POSITION_GAIN = 0.8
_HEAD_CLASSES = 32


def write_random_checkpoints(folder: Path, size: str | RandomModel = "tiny", seed: int = 0) -> RandomModel:
    """Write a complete checkpoints folder with random weights and return its sizes.

    `size` is "tiny", "mid", "half", "full" (official sizes: 5.3 GB) or any `RandomModel`. The weights depend on `seed`
    and the tensors' names only. Every path of the networks contributes, activations stay far from FP16's limits over
    many steps, and decoded frames are coloured noise around medium grey. V-Express's own files are float16 `.bin`,
    autoencoder and audio encoder float32 `.safetensors`. One file is in memory at a time. The folder appears when it
    is complete.

    Raises UserError when the folder exists and is not empty, cannot be written, or the disk is too small.
    """
    model = size if isinstance(size, RandomModel) else RANDOM_MODELS.get(size)
    if model is None:
        raise UserError(f"there is no random model {size!r}; choose from {', '.join(RANDOM_MODELS)}")
    folder = Path(folder)
    with looking():
        occupied = folder.is_dir() and any(folder.iterdir())
    if occupied:
        raise UserError(f"{folder} is not empty; remove it or name another folder for the random checkpoints")
    parts = random_shapes(model)
    _check_disk(folder, parts)
    with atomic_path(folder, directory=True) as fresh:
        configs = {
            official.UNET_CONFIG: model.unet_json(),
            official.VAE_CONFIG: model.vae_json(),
            official.AUDIO_CONFIG: model.audio_json(),
            official.AUDIO_PREPROCESSOR: model.preprocessor_json(),
            official.RANDOM_MARK: {"seed": seed, "model": asdict(model)},
        }
        for name, config in configs.items():
            path = _prepared(fresh / name)
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for name, shapes in parts.items():
            path = _prepared(fresh / name)
            if path.suffix == ".bin":
                torch.save({key: tensor.half() for key, tensor in _tensors(name, shapes, seed)}, path)
            else:
                save_file(dict(_tensors(name, shapes, seed)), path, metadata={"format": "pt"})
    return model


def random_shapes(model: RandomModel) -> dict[str, Shapes]:
    """{file: {name: shape}} of a model's weights in the official layout; allocates nothing."""
    networks = expected_shapes(model.networks())
    audio = {}
    for name, shape in audio_encoder_shapes(model.audio_json()).items():  # named as the speech recogniser's file
        name = name.replace("parametrizations.weight.original0", "weight_g")
        audio["wav2vec2." + name.replace("parametrizations.weight.original1", "weight_v")] = shape
    audio["wav2vec2.masked_spec_embed"] = (model.audio_hidden,)
    audio["lm_head.weight"] = (_HEAD_CLASSES, model.audio_hidden)
    audio["lm_head.bias"] = (_HEAD_CLASSES,)
    return {
        official.REFERENCE_NET: networks["reference_net"],
        official.DENOISING_UNET: networks["denoising_unet"],
        official.MOTION_MODULE: networks["motion_module"],
        official.KPS_GUIDER: networks["v_kps_guider"],
        official.AUDIO_PROJECTION: networks["audio_projection"],
        official.VAE_WEIGHTS[0]: vae_shapes(model.vae_json()),
        official.AUDIO_WEIGHTS[0]: audio,
    }


def _tensors(file: str, shapes: Shapes, seed: int) -> Iterator[tuple[str, Tensor]]:
    part = {"sd-vae-ft-mse": "vae", "wav2vec2-base-960h": "wav2vec2"}.get(file.split("/")[0], Path(file).stem)
    for name, shape in shapes.items():
        tensor = _random_tensor(f"{part}/{name.removeprefix('wav2vec2.')}", shape, seed)
        if name.endswith("weight_g"):  # the output's variance is taps * g^2 / channels
            channels = shapes[name.removesuffix("g") + "v"][0]
            tensor *= _POSITION_GAIN * (channels / shape[2]) ** 0.5
        yield name, tensor


def _random_tensor(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """float32 values for one weight; `name` is part/key."""
    if name.endswith(".pe"):
        return PositionTable(shape[2], shape[1]).pe
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    values = torch.randn(shape, generator=generator)
    if name.endswith(("/latents", "weight_v", "masked_spec_embed")):
        return values
    if name.endswith("pos_emb.weight"):
        return values.mul_(_TABLE)
    if name.endswith(".bias"):
        return values.mul_(_BIAS)
    if len(shape) == 1 or name.endswith("weight_g"):
        return values.mul_(_NORM_SPREAD).add_(1.0)
    if name == "vae/decoder.conv_out.weight":
        # Normed and activated channels all have the same mean: without it in the filter, frames have no tint.
        values -= values.mean(dim=(1, 2, 3), keepdim=True)
    gain = next(gain for pattern, gain in _GAINS if re.search(pattern, name))
    return values.mul_(gain / values[0].numel() ** 0.5)


def _prepared(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _check_disk(folder: Path, parts: Mapping[str, Shapes]) -> None:
    count = {name: sum(torch.Size(shape).numel() for shape in shapes.values()) for name, shapes in parts.items()}
    needed = sum(number * (2 if name.endswith(".bin") else 4) for name, number in count.items()) + (64 << 20)
    parent = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise UserError(
            f"{folder} needs {needed / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free; free some space or choose "
            "another folder"
        )
