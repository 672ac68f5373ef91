"""Denoising jobs on random networks: the loop on the CPU's store, and the loop on a device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from vexpress_trt.bench.gpu_check.networks import (
    TORCH,
    denoiser,
    denoiser_spec,
    engine_on,
    random_inputs,
    randomised,
)
from vexpress_trt.engines.dtypes import numpy_dtype
from vexpress_trt.engines.manifest import SchedulerConfig
from vexpress_trt.engines.torch_cuda_engine import TorchDeviceEngine
from vexpress_trt.export.nets.configs import NetworkConfigs
from vexpress_trt.runtime.cuda.decoder import DeviceDecoder
from vexpress_trt.runtime.cuda.device import Device
from vexpress_trt.runtime.cuda.features import DeviceFeatures
from vexpress_trt.runtime.cuda.gpu import GpuDevice
from vexpress_trt.runtime.cuda.host_device import HostDevice
from vexpress_trt.runtime.cuda.loop import DeviceLoop, FinalFrames
from vexpress_trt.runtime.denoise import denoise
from vexpress_trt.runtime.latent_store import LatentStore
from vexpress_trt.runtime.noise import frame_noise
from vexpress_trt.runtime.scheduler import make_scheduler
from vexpress_trt.runtime.windows import Call, WindowPlan, batches, live_windows


@dataclass(frozen=True)
class Clip:
    """A clip to denoise from random tokens and features; steps from `single_from` on are not guided."""

    plan: WindowPlan
    steps: int
    side: int
    guidance: float = 3.5
    single_from: int | None = None
    window_batch: int = 1

    def guided(self, step: int) -> bool:
        return self.single_from is None or step < self.single_from

    @property
    def shape(self) -> tuple[int, int, int]:
        return 4, self.side, self.side

    @property
    def live(self) -> int:
        return live_windows(self.plan, self.steps, self.window_batch)

    def calls(self) -> Iterator[list[Call]]:
        return batches(self.plan, self.steps, self.window_batch)


class Denoisers:
    """The guided and the single denoiser of a model on a device, with one set of weights."""

    def __init__(
        self,
        networks: NetworkConfigs,
        clip: Clip,
        *,
        device: str,
        precision: str,
        weights_on: str = "cpu",
        fused: bool = True,
    ) -> None:
        self.clip = clip
        self.engines: dict[bool, TorchDeviceEngine] = {}
        for guided in sorted({clip.guided(step) for step in range(clip.steps)}):
            module = randomised(
                lambda guided=guided: denoiser(networks, guided=guided), device=weights_on, dtype=TORCH["fp32"]
            )
            spec = denoiser_spec(networks, guided=guided, precision=precision)
            engine = engine_on(device, spec, module, precision, fused=fused)
            sizes = {"B": clip.window_batch, "F": clip.plan.window, "h": clip.side, "w": clip.side}
            given = random_inputs(spec, sizes, device="cpu")
            fixed = [name for name in given if name not in ("latents", "timestep", "tokens", "kps_feature")]
            engine.bind(**{name: _numpy(given[name]) for name in fixed})
            self.engines[guided] = engine

    def of_step(self, step: int) -> TorchDeviceEngine:
        return self.engines[self.clip.guided(step)]

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()


def fill(frame: int, tokens: np.ndarray, feature: np.ndarray) -> None:
    """Tokens [5, C] and feature [C0, h, w] of a frame: random, and quick to make."""
    random = np.random.default_rng(frame)
    tokens[...] = random.standard_normal(tokens.shape, np.float32)
    feature[...] = random.standard_normal((len(feature), 1, 1), np.float32)


def start(frame: int, noise: np.ndarray, tokens: np.ndarray, features: np.ndarray | None) -> None:
    """What frames from `frame` on start from; features are left to the device where there is no place for them."""
    for row in range(len(noise)):
        noise[row] = frame_noise(3, frame + row, noise.shape[1:])
        fill(frame + row, tokens[row], np.empty((1, 1, 1), np.float32) if features is None else features[row])


def host_loop(clip: Clip, denoisers: Denoisers, *, solver: str = "ddim") -> np.ndarray:
    """Final latents [frames, 4, h, w] by the loop of the CPU; the engines run where they are."""
    scheduler = make_scheduler(SchedulerConfig(), clip.steps, solver)
    store = LatentStore(
        clip.plan,
        scheduler,
        lambda frame: frame_noise(3, frame, clip.shape),
        clip.shape,
        guidance_scale=clip.guidance,
        live_windows=clip.live,
    )

    def tokens(first: int, out: np.ndarray) -> None:
        for row, target in enumerate(out):
            fill(first + row, target, np.empty((1, 1, 1), np.float32))

    def features(first: int, out: np.ndarray) -> None:
        for row, target in enumerate(out):
            fill(first + row, np.empty(tokens_shape, np.float32), target)

    tokens_shape = (5, denoisers.of_step(0).spec.inputs[2].shape[3])
    calls = denoise(
        denoisers.of_step,
        store,
        clip.calls(),
        plan=clip.plan,
        scheduler=scheduler,
        speech=SimpleNamespace(window=tokens),
        features=SimpleNamespace(window=features),
        latent_size=clip.shape[1:],
        window_batch=clip.window_batch,
    )
    return stacked(calls)


def device_loop(
    clip: Clip,
    denoisers: Denoisers,
    *,
    solver: str = "ddim",
    capture: bool = True,
    source: Callable = start,
    device: Device | None = None,
    features: Callable[[Device], DeviceFeatures] | None = None,
    decoder: Callable[[Device], DeviceDecoder] | None = None,
) -> Iterator[tuple[list[Call], FinalFrames]]:
    """The loop on the GPU, or where the engines are on the CPU, on a device that stands for it. `features` and
    `decoder` make what computes features and decodes there."""
    on_cpu = denoisers.of_step(0).backend == "torch"
    device = device or (HostDevice() if on_cpu else GpuDevice(torch.cuda.current_device()))
    with DeviceLoop(
        device,
        denoisers.of_step,
        plan=clip.plan,
        scheduler=make_scheduler(SchedulerConfig(), clip.steps, solver),
        shape=clip.shape,
        guidance_scale=clip.guidance,
        live_windows=clip.live,
        window_batch=clip.window_batch,
        capture=capture,
        features=features and features(device),
        decoder=decoder and decoder(device),
    ) as loop:
        yield from loop.run(clip.calls(), source)


def stacked(calls: Iterator[tuple[list[Call], FinalFrames]]) -> np.ndarray:
    """Final latents [frames, 4, h, w]."""
    return np.stack([latent for _, frames in calls for _, latent in frames])


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
    return tensor.numpy()
