"""The denoising loop: windows and steps in wavefront order, frames leave as soon as they are final."""

from collections.abc import Iterable, Iterator

import numpy as np

from vexpress_trt.engines.engine import Engine
from vexpress_trt.runtime.latent_store import LatentStore
from vexpress_trt.runtime.scheduler import Scheduler
from vexpress_trt.runtime.stages import KeypointFeatures, require_finite
from vexpress_trt.runtime.windows import WindowPlan


def denoise(
    denoiser: Engine,
    store: LatentStore,
    order: Iterable[tuple[int, int]],
    *,
    plan: WindowPlan,
    scheduler: Scheduler,
    tokens: np.ndarray,
    features: KeypointFeatures,
    guidance_scale: float,
) -> Iterator[tuple[int, int, list[tuple[int, np.ndarray]]]]:
    """Run every (window, step) of `order`; yields (window, step, final frames) after each denoiser call.

    The portrait's keys and values and both attention weights are bound to `denoiser` already. `tokens`: [frames, 5, C].
    Final frames are (index, latent float32 [4, h, w]) in frame order. Raises UserError naming window and step when a
    prediction is not finite.
    """
    timesteps = scheduler.timesteps
    for window, step in order:
        start, stop = plan.span(window)
        prediction = denoiser.run(
            latents=store.gather(window, step)[None],
            timestep=np.array([timesteps[step]], np.float32),
            tokens=tokens[start:stop][None],
            kps_feature=features.window(start, stop)[None],
        )["prediction"][0]
        require_finite(prediction, denoiser.spec.name, f"prediction of window {window}, step {step}")
        store.scatter(window, step, guided(prediction, guidance_scale))
        yield window, step, store.pop_final()


def guided(prediction: np.ndarray, guidance_scale: float) -> np.ndarray:
    """Classifier-free guidance u + g (c - u) of a prediction [2, F, 4, h, w]; a single half as it is."""
    if len(prediction) == 1:
        return prediction[0]
    unconditional, conditional = prediction
    return unconditional + np.float32(guidance_scale) * (conditional - unconditional)
