"""The denoising loop: windows and steps in wavefront order, frames leave as soon as they are final."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from vexpress_trt.engines.dtypes import numpy_dtype
from vexpress_trt.engines.engine import Engine
from vexpress_trt.runtime.latent_store import LatentStore
from vexpress_trt.runtime.scheduler import Scheduler
from vexpress_trt.runtime.speech import Speech
from vexpress_trt.runtime.stages import KeypointFeatures, nonfinite
from vexpress_trt.runtime.windows import Call, WindowPlan, alike


def denoise(
    denoiser: Callable[[int], Engine],
    store: LatentStore,
    batches: Iterable[list[Call]],
    *,
    plan: WindowPlan,
    scheduler: Scheduler,
    speech: Speech,
    features: KeypointFeatures,
    latent_size: tuple[int, int],
    window_batch: int = 1,
) -> Iterator[tuple[list[Call], list[tuple[int, np.ndarray]]]]:
    """Run every batch of up to `window_batch` calls; yields (calls, final frames) after each run of an engine.

    `denoiser(step)` is the engine of a step, a guided one or one of the conditional half alone; the portrait's keys and
    values and both attention weights are bound to it already. `latent_size`: (h, w). Final frames are (index, latent
    float32 [4, h, w]) in frame order. Everything is gathered into buffers that are allocated once. Raises UserError
    naming windows and steps when a prediction is not finite.
    """
    inputs = _buffers(denoiser(0), {"B": window_batch, "F": plan.window, "h": latent_size[0], "w": latent_size[1]})
    for calls in alike(batches, denoiser):
        engine = denoiser(calls[0][1])
        for row, (window, step) in enumerate(calls):
            start, _ = plan.span(window)
            store.gather(window, step, inputs["latents"][row])
            inputs["timestep"][row] = scheduler.timesteps[step]
            speech.window(start, inputs["tokens"][row])
            features.window(start, inputs["kps_feature"][row])
        predictions = engine.run(**{name: buffer[: len(calls)] for name, buffer in inputs.items()})["prediction"]
        for (window, step), prediction in zip(calls, predictions, strict=True):
            if not store.scatter(window, step, prediction):
                raise nonfinite(engine.spec.name, f"prediction of window {window}, step {step}")
        yield calls, store.pop_final()


def _buffers(denoiser: Engine, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """One array for each of the denoiser's inputs that change from call to call, [B, ...]."""
    return {
        tensor.name: np.empty([sizes.get(dim, dim) for dim in tensor.shape], numpy_dtype(tensor.dtype))
        for tensor in denoiser.spec.inputs
        if tensor.name in ("latents", "timestep", "tokens", "kps_feature")
    }
