"""The denoising loop of a clip on a GPU, in place of `runtime.denoise`."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from vexpress_trt.engines.device_engine import DeviceEngine
from vexpress_trt.runtime.cuda.gpu import GpuDevice
from vexpress_trt.runtime.cuda.loop import DeviceLoop, FinalFrames
from vexpress_trt.runtime.scheduler import Scheduler
from vexpress_trt.runtime.speech import Speech
from vexpress_trt.runtime.stages import KeypointFeatures
from vexpress_trt.runtime.windows import Call, WindowPlan


def denoise_on_gpu(
    gpu: int,
    denoiser: Callable[[int], DeviceEngine],
    batches: Iterable[list[Call]],
    *,
    plan: WindowPlan,
    scheduler: Scheduler,
    noise: Callable[[int], np.ndarray],
    speech: Speech,
    features: KeypointFeatures,
    shape: tuple[int, ...],
    guidance_scale: float,
    live_windows: int,
    window_batch: int = 1,
) -> Iterator[tuple[list[Call], FinalFrames]]:
    """Run every batch of up to `window_batch` calls on GPU number `gpu`; yields (calls, final frames) as they are done.

    `denoiser(step)` is the engine of a step, with the portrait's keys and values and both attention weights bound;
    `noise(frame)` gives a frame's initial latent of `shape` [4, h, w] and is asked once per frame. Final frames are
    (index, latent float32 [4, h, w]) in frame order. Raises UserError naming window and step when a prediction is not
    finite, or where the GPU cannot be used.
    """

    def start(frame: int, latents: np.ndarray, tokens: np.ndarray, kps_feature: np.ndarray) -> None:
        for row, latent in enumerate(latents):
            latent[...] = noise(frame + row)
        speech.window(frame, tokens)
        features.window(frame, kps_feature)

    with DeviceLoop(
        GpuDevice(gpu),
        denoiser,
        plan=plan,
        scheduler=scheduler,
        shape=shape,
        guidance_scale=guidance_scale,
        live_windows=live_windows,
        window_batch=window_batch,
    ) as loop:
        yield from loop.run(batches, start)
