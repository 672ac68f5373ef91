"""The denoising loop of a clip, made ready on the CPU or on a GPU: its engines taken up, and what its calls work on."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import cache
from typing import Any

import numpy as np

from vexpress_trt.engines.engine import Engine
from vexpress_trt.runtime.denoise import denoise
from vexpress_trt.runtime.engine_loader import EngineLoader
from vexpress_trt.runtime.latent_store import LatentStore
from vexpress_trt.runtime.preparation import Preparation
from vexpress_trt.runtime.speech import Speech
from vexpress_trt.runtime.stages import KeypointFeatures
from vexpress_trt.runtime.windows import Call, batches

FEATURE_BUDGET = 256 << 20  # bytes of key-point features remembered; none with save_gpu_memory

Calls = Iterator[tuple[list[Call], list[tuple[int, np.ndarray]]]]


def clip_calls(
    prepared: Preparation,
    engines: EngineLoader,
    stack: ExitStack,
    *,
    keys_values: dict[str, np.ndarray],
    speech: Speech,
    noise: Callable[[int], np.ndarray],
    decoded: bool,
    look: Callable[[], None],
) -> Calls:
    """The clip's calls, with the frames that each makes final, as `denoise` and `denoise_on_gpu` yield them.

    What they need is loaded, and freed when `stack` is left. `keys_values` are the portrait's; `noise(frame)` is a
    frame's initial latent. With `decoded` frames are images that were decoded and filtered on the GPU; `look` as for
    `denoise_on_gpu`.
    """
    request, clip = prepared.request, prepared.clip
    guider = stack.enter_context(engines.use("kps_guider"))
    denoiser = _denoiser_of(prepared, engines, stack, keys_values)
    given = {
        "denoiser": denoiser,
        "batches": batches(clip.plan, request.num_inference_steps, request.window_batch),
        "plan": clip.plan,
        "scheduler": prepared.scheduler,
        "speech": speech,
        "window_batch": request.window_batch,
    }
    start = {
        "noise": noise,
        "shape": prepared.latent_shape,
        "guidance_scale": request.guidance_scale,
        "live_windows": prepared.live_windows,
    }
    if prepared.choice.gpu is None:
        return _on_cpu(prepared, guider, start, given)
    for step in range(request.num_inference_steps):  # all that is captured is there before the first call
        denoiser(step)
    from vexpress_trt.runtime.cuda.denoise import denoise_on_gpu

    decoder = stack.enter_context(engines.use("vae_decoder")) if decoded else None
    there = {"guider": guider, "points": clip.points, "decoder": decoder, "length": clip.length}
    there |= {"scaling": prepared.bundle.manifest.model.latent_scaling, "look": look}
    return stack.enter_context(closing(denoise_on_gpu(prepared.choice.gpu, **start, **given, **there)))


def _on_cpu(prepared: Preparation, guider: Engine, start: dict[str, Any], given: dict[str, Any]) -> Calls:
    clip = prepared.clip
    store = LatentStore(clip.plan, given["scheduler"], **start)
    features = KeypointFeatures(
        guider,
        clip.points,
        clip.width,
        clip.height,
        live_frames=clip.plan.live_frames(prepared.live_windows),
        budget=0 if prepared.request.save_gpu_memory else FEATURE_BUDGET,
    )
    return denoise(store=store, latent_size=start["shape"][1:], features=features, **given)


def _denoiser_of(
    prepared: Preparation, engines: EngineLoader, stack: ExitStack, keys_values: dict[str, np.ndarray]
) -> Callable[[int], Engine]:
    """The engine of a step, with what stays the same bound to it.

    Each is taken up when its first step comes: on a CPU the second one may load beside the first one's calls.
    """
    request, graphs = prepared.request, prepared.denoiser_graphs

    @cache
    def taken_up(graph: str) -> Engine:
        engine = stack.enter_context(engines.use(graph))
        engine.bind(
            **keys_values,
            reference_weight=np.array([request.reference_attention_weight], np.float32),
            audio_weight=np.array([request.audio_attention_weight], np.float32),
        )
        return engine

    return lambda step: taken_up(graphs[step])
