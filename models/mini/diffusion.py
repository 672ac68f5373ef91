"""The stages `spatial` and `motion`: denoising of latents, first of single frames, then of windows of frames.

v-prediction with zero terminal SNR, as the scheduler of the runtime. Conditions are withheld now and then, each as the
runtime's unconditional half does it: a zero bank, zero tokens, a zero feature.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vexpress_trt.engines.manifest import SchedulerConfig
from vexpress_trt.models.mini.autoencoder import Autoencoder, scaled
from vexpress_trt.models.mini.carry import PAD, Spoken
from vexpress_trt.models.mini.networks import SmallVExpress, Window
from vexpress_trt.models.mini.pool import Pool, pixel_weights
from vexpress_trt.models.mini.pose import SIZE
from vexpress_trt.models.mini.sizes import MINI
from vexpress_trt.models.mini.training import Plan, Run, averaged_weights, generator
from vexpress_trt.runtime.audio_features import ROWS_PER_FRAME
from vexpress_trt.runtime.keypoints import draw_keypoints
from vexpress_trt.runtime.scheduler import alphas_cumprod

SPATIAL_PLAN = Plan(rate=1.2e-3, average=0.998)
MOTION_PLAN = Plan(rate=7e-4, average=0.998)
SPATIAL_FOLDER, MOTION_FOLDER = "spatial", "motion"
_MOUTH_WEIGHT = 5.0
_NOISY = 550  # half of the timesteps are from here to the end, where pose and mouth are decided
_WITHHELD = (0.05, 0.07, 0.03)  # portrait, audio, key points
_ALL_WITHHELD = 0.1
_REFERENCE_WEIGHTS, _AUDIO_WEIGHTS = (0.9, 1.0), (1.0, 3.0)  # the box uses 0.95 and 3
_AT_ONCE = 20  # clips encoded in one go
_ROWS = ROWS_PER_FRAME * (2 * PAD + 1)


@dataclass(frozen=True)
class Shape:
    """What a step sees: `windows` of `frames` each, in order or not."""

    windows: int
    frames: int
    ordered: bool


class Clips:
    """All clips as latents on the device with what is heard, and windows drawn from them."""

    def __init__(self, pool: Pool, autoencoder: Autoencoder, spoken: Spoken) -> None:
        device = self.device = pool.device
        count = pool.count
        self._latents = _encoded(autoencoder, pool.frames[:count])
        self._guides, self._boxes = pool.guides[:count], pool.boxes[:count]
        self._utterances, self._begins = pool.heard[:count].long().unbind(-1)
        self._rows = torch.from_numpy(spoken.rows).to(device)
        self._scale = torch.from_numpy(spoken.scale).to(device)
        self._starts = torch.from_numpy(spoken.starts).long().to(device)
        self._alphas = torch.from_numpy(np.asarray(alphas_cumprod(SchedulerConfig()), np.float32)).to(device)
        self._withheld = torch.tensor(_WITHHELD, device=device)
        self.training, self.test = (pool.held, count), (0, pool.held)

    def draw(self, clips: tuple[int, int], shape: Shape, random: torch.Generator) -> tuple[Tensor, ...]:
        """A batch for `denoiser_loss`, of clips from the first number up to the second."""

        def uniform(*size: int) -> Tensor:
            return torch.rand(*size, generator=random, device=self.device)

        first, end = clips
        windows = shape.windows
        chosen = first + uniform(end - first).topk(min(windows, end - first)).indices
        windows = len(chosen)
        available = self._guides.shape[1]
        if shape.ordered:
            begin = (uniform(windows, 1) * (available - shape.frames + 1)).long()
            frames = begin + torch.arange(shape.frames, device=self.device)
        else:
            frames = uniform(windows, available).argsort(dim=1)[:, : shape.frames]
        at = chosen[:, None], frames
        low = _NOISY * (uniform(windows) < 0.5)
        timestep = low + (uniform(windows) * (1000 - low)).long()
        kept = (uniform(windows, 3) >= self._withheld) & (uniform(windows, 1) >= _ALL_WITHHELD)
        low, high = _REFERENCE_WEIGHTS
        reference = low + (high - low) * uniform(windows)
        low, high = _AUDIO_WEIGHTS
        loud = low * (high / low) ** uniform(windows)
        clean = self._latents[at].float()
        noise = torch.randn(clean.shape, generator=random, device=self.device)
        noisy, target = diffused(clean, noise, self._alphas[timestep])
        audio = self._hear(chosen, frames, uniform(windows))
        return (
            noisy, timestep.float(), self._latents[chosen, -1].float(), audio, self._guides[at], kept.float(),
            reference, loud, target, latent_weights(self._boxes[at]),
        )  # fmt: skip

    def _hear(self, clips: Tensor, frames: Tensor, recording: Tensor) -> Tensor:
        """The rows [P, F, 10, D] that frames of clips hear, in a recording chosen by a number in 0..1."""
        starts = self._starts[self._utterances[clips]]
        start = starts.gather(1, (recording * starts.shape[1]).long()[:, None])
        first = start + ROWS_PER_FRAME * (self._begins[clips, None] + frames)
        return self._rows[first[..., None] + torch.arange(_ROWS, device=self.device)].float() * self._scale


def diffused(clean: Tensor, noise: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents and the v to be predicted, for clean latents [P, ...] and the schedule's alphas [P]."""
    alpha = alpha.view(-1, *[1] * (clean.ndim - 1))
    signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
    return signal * clean + spread * noise, signal * noise - spread * clean


def latent_weights(boxes: Tensor) -> Tensor:
    """The weight of each latent, float32 [P, F, 1, 16, 16], 1 on average; those of the mouth count more."""
    weights = F.avg_pool2d(pixel_weights(boxes, 1.0, _MOUTH_WEIGHT), 8)[:, :, None]
    return weights / weights.mean()


def denoiser_loss(model: SmallVExpress) -> Callable[..., Tensor]:
    """The loss of what `Clips.draw` returns."""

    def loss(
        noisy: Tensor, timestep: Tensor, portrait: Tensor, audio: Tensor, guides: Tensor, keep: Tensor,
        reference_weight: Tensor, audio_weight: Tensor, target: Tensor, weights: Tensor,
    ) -> Tensor:  # fmt: skip
        window = Window(noisy, timestep, portrait, audio, guides.permute(0, 1, 4, 2, 3).float() / 255, keep)
        with torch.autocast(noisy.device.type, torch.bfloat16):
            prediction = model(window, reference_weight, audio_weight)
        error = (prediction.float() - target).square()
        return torch.stack([(weights * error).mean(), error.mean()])

    return loss


def example_windows(windows: int, seed: int, device: str) -> tuple[Tensor, ...]:
    """Windows of noise, to try `denoiser_loss` with."""
    random = generator(seed, 1, device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(windows, *shape, generator=random, device=device)

    timestep = torch.full((windows,), 600.0, device=device)
    guides = torch.zeros(windows, 6, SIZE, SIZE, 3, dtype=torch.uint8, device=device)
    ones = torch.ones(windows, device=device)
    return (
        normal(6, 4, 16, 16), timestep, normal(4, 16, 16), normal(6, _ROWS, MINI.audio_hidden), guides,
        torch.ones(windows, 3, device=device), ones, 2 * ones, normal(6, 4, 16, 16),
        torch.ones(windows, 6, 1, 16, 16, device=device),
    )  # fmt: skip


def train_denoiser(
    folder: Path, stage: str, clips: Clips, plan: Plan, frames: int, seconds: float, *, graphs: bool
) -> bool:
    """Trains one of the two stages on so many frames a step; `motion` starts from the averaged weights of `spatial`.

    Says whether the plan was done.
    """
    torch.manual_seed(4)
    moving = stage == MOTION_FOLDER
    model = SmallVExpress()
    if moving:
        model.load_state_dict(averaged_weights(folder / SPATIAL_FOLDER))
    model.denoising_unet.moving = moving
    run = Run(folder / stage, model.to(clips.device), plan)
    loss = denoiser_loss(model)

    def draw(step: int) -> tuple[Tensor, ...]:
        return clips.draw(clips.training, _shape(step, moving, frames), generator(5 + moving, step, clips.device))

    def measure() -> dict[str, float]:
        shape = Shape(8, 24, True) if moving else Shape(16, 6, False)
        batches = [clips.draw(clips.test, shape, generator(8, number, clips.device)) for number in range(4)]
        return {"test": float(np.mean([loss(*batch)[1].item() for batch in batches]))}

    return run.train(draw, loss, ("loss", "error"), measure, seconds, graphs=graphs)


def guides(tracks: np.ndarray) -> Tensor:
    """The guide images of key points [..., 3, 2]: float32 [..., 3, 128, 128] in 0..1."""
    flat = tracks.reshape(-1, 3, 2)
    images = np.stack([draw_keypoints(points, SIZE, SIZE) for points in flat]).astype(np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).view(*tracks.shape[:-2], 3, SIZE, SIZE)


def _shape(step: int, moving: bool, frames: int) -> Shape:
    if not moving:
        return Shape(max(1, frames // 6), 6, False)
    # Every second step sees whole windows, so that the last positions are trained too.
    length = 24 if step % 2 == 0 else 12
    return Shape(max(1, frames // length), length, True)


def _encoded(autoencoder: Autoencoder, frames: Tensor) -> Tensor:
    """Latents float16 [N, T + 1, 4, 16, 16] of clips uint8 [N, T + 1, 128, 128, 3]."""
    with torch.no_grad(), torch.autocast(frames.device.type, torch.bfloat16):
        parts = [autoencoder.encode(scaled(part.flatten(0, 1))).half() for part in frames.split(_AT_ONCE)]
    return torch.cat(parts).unflatten(0, frames.shape[:2])
