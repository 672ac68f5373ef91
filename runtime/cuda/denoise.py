"""A clip on a GPU, in place of `runtime.denoise` and the decoding behind it."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from vexpress_trt.engines.device_engine import DeviceEngine
from vexpress_trt.runtime.cuda.decoder import ROOM, DeviceDecoder
from vexpress_trt.runtime.cuda.features import DeviceFeatures
from vexpress_trt.runtime.cuda.gpu import GpuDevice
from vexpress_trt.runtime.cuda.loop import DeviceLoop, FinalFrames
from vexpress_trt.runtime.scheduler import Scheduler
from vexpress_trt.runtime.speech import Speech
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
    guider: DeviceEngine,
    points: np.ndarray,
    shape: tuple[int, ...],
    guidance_scale: float,
    live_windows: int,
    window_batch: int = 1,
    decoder: DeviceEngine | None = None,
    length: int = 0,
    scaling: float = 1.0,
    look: Callable[[], None] = lambda: None,
) -> Iterator[tuple[list[Call], FinalFrames]]:
    """Run every batch of up to `window_batch` calls on GPU number `gpu`; yields (calls, final frames) as they are done.

    `denoiser(step)` is the engine of a step, with the portrait's keys and values and both attention weights bound;
    `noise(frame)` gives a frame's initial latent of `shape` [4, h, w] and is asked once per frame; `points` float
    [L, 3, 2] are the key points that the guider's images are drawn from. Final frames are (index, latent float32
    [4, h, w]) in frame order. With `decoder` the first `length` of them are decoded where they are, their latents
    divided by `scaling`, and filtered: (index, uint8 RGB [H, W, 3]). `look` is called when the loop is up, and before
    its memory is freed. Raises UserError naming window and step, or frame, when a prediction or image is not finite, or
    where the GPU cannot be used.
    """

    def start(frame: int, latents: np.ndarray, tokens: np.ndarray, _: None) -> None:
        for row, latent in enumerate(latents):
            latent[...] = noise(frame + row)
        speech.window(frame, tokens)

    device = GpuDevice(gpu)
    try:
        room = plan.window + ROOM  # a window becomes final at once, and nobody should wait for its decoding
        with DeviceLoop(
            device,
            denoiser,
            plan=plan,
            scheduler=scheduler,
            shape=shape,
            guidance_scale=guidance_scale,
            live_windows=live_windows,
            window_batch=window_batch,
            features=DeviceFeatures(device, guider, points, shape=shape, rows=2 * plan.window),
            decoder=decoder and DeviceDecoder(device, decoder, length=length, shape=shape, scaling=scaling, room=room),
        ) as loop:
            for number, done in enumerate(loop.run(batches, start)):
                if number == 0:
                    look()
                yield done
            look()
    finally:
        device.close()


def decode_on_gpu(
    gpu: int,
    decoder: DeviceEngine,
    latents: Iterable[tuple[int, np.ndarray]],
    *,
    length: int,
    scaling: float,
    look: Callable[[], None] = lambda: None,
) -> Iterator[np.ndarray]:
    """The finished frames, uint8 RGB [H, W, 3], of a clip's final latents (frame, float32 [4, h, w]) on the host.

    `look` is called before the decoder's memory is freed. Raises UserError naming the frame when an image is not
    finite.
    """
    device = GpuDevice(gpu)
    decoding: DeviceDecoder | None = None
    try:
        for frame, latent in latents:
            if decoding is None:
                decoding = DeviceDecoder(device, decoder, length=length, shape=latent.shape, scaling=scaling)
            decoding.take_from_host(frame, latent)
            yield from (image for _, image in decoding.finished())
        for frames in decoding.rest() if decoding is not None else ():
            yield from (image for _, image in frames)
        look()
    finally:
        device.close()
        if decoding is not None:
            decoding.close()
