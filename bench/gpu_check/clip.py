"""A short clip at full size through the loop, guider and decoder; ten seconds extrapolated from what that took."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import takewhile
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from vexpress_trt.bench.gpu_check.jobs import Clip, Denoisers, device_loop, fill
from vexpress_trt.bench.gpu_check.networks import TORCH, engine_on, guider, guider_spec, model_for, randomised
from vexpress_trt.bench.gpu_check.parts import CheckFailed, Record, Setting
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.engines.torch_cuda_engine import TorchDeviceEngine
from vexpress_trt.export.random_model import RandomModel
from vexpress_trt.runtime.median import filtered
from vexpress_trt.runtime.noise import frame_noise
from vexpress_trt.runtime.pipeline import Pipeline
from vexpress_trt.runtime.stages import KeypointFeatures, decode
from vexpress_trt.runtime.summary import Stopwatch
from vexpress_trt.runtime.windows import WindowPlan, latency_order

SECONDS, FPS = 10.0, 30.0
LATENT_SCALING = 0.18215


def check(setting: Setting, record: Record) -> None:
    """Raises CheckFailed where frames are missing."""
    model, side = model_for(setting), 8 if setting.small else 64
    plan = WindowPlan.covering(10, 6, 2) if setting.small else WindowPlan.covering(44, 24, 4)
    clip = Clip(plan, steps=2 if setting.small else 25, side=side)
    device, precision = setting.device, "fp16" if setting.device == "cuda" else "fp32"
    denoisers = Denoisers(model.networks(), clip, device=device, precision=precision, weights_on=device)
    features = _features(model, clip, device, precision)
    with_decoder = find_spec("diffusers") is not None
    if not with_decoder:
        record("skipped", "the image decoder: diffusers is not installed")
    decoder = Decoder(model, device, precision) if with_decoder else None
    record("clip", {"frames": plan.frames, "steps": clip.steps, "pixels": 8 * side, "precision": precision,
                    "tokens": "random, not encoded from speech", "files": "none: no portrait, no MP4"})  # fmt: skip

    def source(frame: int, noise: np.ndarray, tokens: np.ndarray, rows: np.ndarray) -> None:
        for row, latent in enumerate(noise):
            latent[...] = frame_noise(42, frame + row, latent.shape)
            fill(frame + row, tokens[row], np.empty((1, 1, 1), np.float32))
        features.window(frame, rows)

    watch = Stopwatch()
    began = perf_counter()
    first, frames = None, 0
    with Pipeline() as pipeline:
        calls = watch.timed("loop", device_loop(clip, denoisers, source=source))
        latents = pipeline.behind((pair for _, final in calls for pair in final), ahead=plan.window)
        images: Iterator[Any] = latents
        if decoder is not None:
            decoded = pipeline.behind(decode(decoder, latents, watch), ahead=4)
            quantised = ((image * np.float32(255.0)).astype(np.uint8) for image in decoded)
            images = pipeline.behind(filtered(quantised), ahead=8)
        for _ in images:
            first = first or perf_counter() - began
            frames += 1
    total = perf_counter() - began
    if frames != plan.frames:
        raise CheckFailed(f"{frames} of {plan.frames} frames came")
    done = plan.windows * clip.steps
    record("seconds", total)
    record("seconds_to_first_frame", first)
    record("loop_seconds", watch.seconds["loop"])
    record("loop_seconds_per_call", watch.seconds["loop"] / done)
    decode_ms = watch.seconds.get("decode", 0.0) / frames * 1e3
    record("decode_ms_per_frame", decode_ms)
    call = steady(clip, denoisers, source)
    record("loop_ms_per_call_again", call * 1e3)
    record("ten_seconds_extrapolated", extrapolated(call, decode_ms / 1e3, steps=clip.steps))
    denoisers.close()


def steady(clip: Clip, denoisers: Denoisers, source: Any) -> float:
    """Seconds per call of a second run, in which only the first call and the capture are not steady: the median."""
    stamps = [perf_counter() for _ in device_loop(clip, denoisers, source=source)]
    return float(np.median(np.diff(stamps)))


def extrapolated(call: float, decoding: float, *, steps: int) -> dict[str, float]:
    """A clip of ten seconds, from seconds per call and per decoded frame: the loop sets the pace, the last window's
    frames are decoded behind it; start-up, speech, portrait and writing the file are not in it."""
    plan = WindowPlan.covering(round(SECONDS * FPS), 24, 4)
    before_first = 1 + sum(1 for _ in takewhile(lambda call: call != (0, steps - 1), latency_order(plan, steps)))
    calls = plan.windows * steps
    return {
        "calls": calls,
        "seconds": calls * call + plan.window * decoding,
        "seconds_to_first_frame": before_first * call + 2 * decoding,
        "seconds_to_decode_all_frames": plan.frames * decoding,
    }


class Decoder:
    """The image decoder in the place of an engine loader."""

    def __init__(self, model: RandomModel, device: str, precision: str) -> None:
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
        self._engine = engine_on(device, spec, module, precision)
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(model=SimpleNamespace(latent_scaling=LATENT_SCALING)))

    @contextmanager
    def use(self, _: str) -> Iterator[TorchDeviceEngine]:
        yield self._engine


def _features(model: RandomModel, clip: Clip, device: str, precision: str) -> KeypointFeatures:
    networks, pixels = model.networks(), 8 * clip.side
    module = randomised(lambda: guider(networks), device=device, dtype=torch.float32)
    engine = engine_on(device, guider_spec(networks, precision), module, precision)
    face = np.array([[0.4, 0.4], [0.6, 0.4], [0.5, 0.55]]) * pixels
    points = face + np.sin(np.arange(clip.plan.frames) / 5)[:, None, None] * 0.05 * pixels
    live = clip.plan.live_frames(clip.live)
    return KeypointFeatures(engine, points, pixels, pixels, live_frames=live, budget=0)
