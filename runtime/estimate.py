"""What a clip will cost, roughly, before it starts: for advice, never for results."""

from time import perf_counter

import numpy as np

from vexpress_trt.engines.bundle import Bundle, graph_bytes
from vexpress_trt.engines.manifest import PRECISION_DTYPE

# A full-size denoiser call is 1.278 TFLOP per frame and half at 64x64 latents with 1.36 G parameters
# (golden figures): FLOP = 2 * parameters * latent pixels * this share, since the widest layers see the fewest pixels.
_WEIGHT_USE = 1.278e12 / (2 * 1.36e9 * 64 * 64)
_ENGINE_EFFICIENCY = {"fp32": 0.5, "fp16": 0.5, "bf16": 1.2}  # of the measured FP32 matmul rate

# Activations alive at once in the widest resolution level, in units of [frames, C0, h, w]: the feed-forward's two
# 4*C0 projections, the hidden state, skips and the motion module's copies. Measured on the mid-size network.
LIVE_ACTIVATIONS = 28
_BASE_BYTES = 400 << 20  # interpreter, libraries, decoder


def estimate_seconds(
    bundle: Bundle,
    precision: str,
    dtype: str,
    *,
    windows: int,
    frames: int,
    steps: int,
    halves: int,
    latent_pixels: int,
) -> float:
    """Wall-clock seconds of the denoising loop on this machine, within a factor of about two."""
    parameters = _graph_bytes(bundle, "denoiser_guided", precision) / _itemsize(precision)
    flop = 2 * parameters * latent_pixels * _WEIGHT_USE * frames * halves * windows * steps
    return flop / (_matmul_flops() * _ENGINE_EFFICIENCY.get(dtype, 0.5))


def estimate_bytes(
    bundle: Bundle,
    precision: str,
    *,
    frames: int,
    halves: int,
    latent_pixels: int,
    save_gpu_memory: bool,
    denoisers: int = 1,
) -> int:
    """Peak memory of a clip, within a factor of about 1.5: that of its largest stage, the denoising loop, in which
    `denoisers` engines are loaded.

    The decoder runs beside the loop unless `save_gpu_memory` has the latents spooled to disk first.
    """
    weights = denoisers * _graph_bytes(bundle, "denoiser_guided", precision)
    if not save_gpu_memory:
        weights += _graph_bytes(bundle, "vae_decoder", precision)
    activations = 4 * LIVE_ACTIVATIONS * halves * frames * latent_pixels * bundle.manifest.model.feature_channels
    return int(1.3 * weights) + activations + _BASE_BYTES


def _graph_bytes(bundle: Bundle, graph: str, precision: str) -> int:
    return graph_bytes(bundle, bundle.graph(graph, precision))


def _itemsize(precision: str) -> int:
    return 4 if PRECISION_DTYPE[precision] == "float32" else 2


def _matmul_flops(side: int = 768) -> float:
    """FP32 matmul rate of this process, FLOP/s: the best of three short runs."""
    matrix = np.ones((side, side), np.float32)
    seconds = []
    for _ in range(3):
        began = perf_counter()
        matrix @ matrix
        seconds.append(perf_counter() - began)
    return 2 * side**3 / min(seconds)
