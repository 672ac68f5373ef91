"""Generating clips with the small model as it is trained: the runtime's schedule and guidance, on one window."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vexpress_trt.engines.manifest import SchedulerConfig
from vexpress_trt.models.mini.autoencoder import Autoencoder, to_frames
from vexpress_trt.models.mini.networks import SmallVExpress, Window
from vexpress_trt.runtime.scheduler import Scheduler


@dataclass(frozen=True)
class Settings:
    """The runtime's options of the same names."""

    steps: int = 8
    guidance: float = 2.0
    reference_weight: float = 0.95
    audio_weight: float = 3.0
    seed: int = 42


def generate(
    model: SmallVExpress,
    autoencoder: Autoencoder,
    portrait: Tensor,
    audio: Tensor,
    guide: Tensor,
    settings: Settings,
    keep: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> np.ndarray:
    """Frames uint8 [F, 128, 128, 3] for a portrait [4, h, w], rows of audio [F, 10, D] and guides [F, 3, 128, 128].

    `keep` withholds portrait, audio or key points from the conditional half where it is 0.
    """
    latents = torch.randn(1, len(audio), *portrait.shape, generator=torch.Generator().manual_seed(settings.seed))
    scheduler = Scheduler(SchedulerConfig(), settings.steps)
    weights = settings.reference_weight, settings.audio_weight

    def predict(timestep: int, kept: tuple[float, ...]) -> Tensor:
        window = Window(
            latents, torch.tensor([float(timestep)]), portrait[None], audio[None], guide[None], torch.tensor([kept])
        )
        return model(window, *weights)

    with torch.no_grad():
        for step, timestep in enumerate(scheduler.timesteps):
            prediction = predict(timestep, keep)
            if settings.guidance > 1:
                without = predict(timestep, (0.0, 0.0, 0.0))
                prediction = without + settings.guidance * (prediction - without)
            step_weights = scheduler.weights(step)
            latents = float(step_weights.sample) * latents + float(step_weights.prediction) * prediction
        return np.concatenate([to_frames(autoencoder.decode(part)) for part in latents[0].split(8)])
