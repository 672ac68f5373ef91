"""Guider and image decoder with random weights, around the loop on its device."""

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from torch import nn

from vexpress_trt.bench.gpu_check.jobs import Clip
from vexpress_trt.bench.gpu_check.networks import TORCH, engine_on, guider, guider_spec, randomised
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.export.random_model import RandomModel
from vexpress_trt.runtime.cuda.decoder import ROOM, DeviceDecoder
from vexpress_trt.runtime.cuda.device import Device
from vexpress_trt.runtime.cuda.features import DeviceFeatures

LATENT_SCALING = 0.18215
NO_DECODER = "the image decoder: diffusers is not installed"


def features_on(model: RandomModel, clip: Clip, device: str, precision: str) -> Callable[[Device], DeviceFeatures]:
    """Makes the features of a face that moves about."""
    networks, pixels = model.networks(), 8 * clip.side
    module = randomised(lambda: guider(networks), device=device, dtype=torch.float32)
    engine = engine_on(device, guider_spec(networks, precision), module, precision)
    face = np.array([[0.4, 0.4], [0.6, 0.4], [0.5, 0.55]]) * pixels
    points = face + np.sin(np.arange(clip.plan.frames) / 5)[:, None, None] * 0.05 * pixels
    return lambda there: DeviceFeatures(there, engine, points, shape=clip.shape, rows=2 * clip.plan.window)


def decoder_on(model: RandomModel, clip: Clip, device: str, precision: str) -> Callable[[Device], DeviceDecoder] | None:
    """Makes the decoder of a clip; None where diffusers, which has its network, is missing."""
    if find_spec("diffusers") is None:
        return None
    from vexpress_trt.export.nets.library import VaeDecoder

    spec = GraphSpec(
        "vae_decoder",
        precision,
        "vae_decoder.onnx",
        (TensorSpec("latents", "float32", ("N", 4, "h", "w")),),
        (TensorSpec("image", "float32", ("N", 3, "8*h", "8*w")),),
        ("vae_decoder.onnx",),
    )
    module: nn.Module = randomised(lambda: VaeDecoder(model.vae_json()), device=device, dtype=TORCH[precision])
    engine = engine_on(device, spec, module, precision)
    given = {"length": clip.plan.frames, "shape": clip.shape, "scaling": LATENT_SCALING}
    return lambda there: DeviceDecoder(there, engine, room=clip.plan.window + ROOM, **given)
