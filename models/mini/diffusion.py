"""The stages `spatial` and `motion`: denoising of latents, first of single frames, then of windows of frames.

v-prediction with zero terminal SNR, as the scheduler of the runtime. Conditions are withheld now and then, each as the
runtime's unconditional half does it: a zero bank, zero tokens, a zero feature.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vexpress_trt.engines.manifest import SchedulerConfig
from vexpress_trt.models.mini.clips import CLIPS_FOLDER
from vexpress_trt.models.mini.listening import HEARING_FOLDER, windows_of
from vexpress_trt.models.mini.measure import mouth_box
from vexpress_trt.models.mini.networks import SmallVExpress, Window
from vexpress_trt.models.mini.pose import SIZE
from vexpress_trt.models.mini.records import read_all
from vexpress_trt.models.mini.training import Plan, Run, averaged_weights, generator
from vexpress_trt.runtime.keypoints import draw_keypoints
from vexpress_trt.runtime.scheduler import alphas_cumprod

SPATIAL_PLAN = Plan(steps=8000, rate=1e-3, average=0.998, measure_every=1000)
MOTION_PLAN = Plan(steps=3000, rate=5e-4, average=0.998, measure_every=500)
SPATIAL_FOLDER, MOTION_FOLDER = "spatial", "motion"
_MOUTH_WEIGHT = 5.0
_NOISY = 550  # half of the timesteps are from here to the end, where pose and mouth are decided
_WITHHELD = (0.05, 0.07, 0.03)  # portrait, audio, key points
_ALL_WITHHELD = 0.1
_REFERENCE_WEIGHTS, _AUDIO_WEIGHTS = (0.9, 1.0), (1.0, 3.0)  # the runtime's defaults are 0.95 and 3
_TEST_CLIPS = 64  # of the clips on disk, kept from training for the curve


@dataclass(frozen=True)
class Shape:
    """What a step sees: `windows` of `frames` each, in order or not."""

    windows: int
    frames: int
    ordered: bool


class Clips:
    """All clips on disk, and windows drawn from them."""

    def __init__(self, folder: Path) -> None:
        records = read_all(folder / CLIPS_FOLDER)
        self._latents = np.stack([record["latents"] for record in records])
        self._portraits = np.stack([record["portrait"] for record in records])
        self._tracks = np.stack([record["track"] for record in records])
        self._heard = [(int(record["utterance"]), int(record["start"])) for record in records]
        self._rows = [record["rows"] for record in read_all(folder / HEARING_FOLDER)]
        self._alphas = alphas_cumprod(SchedulerConfig())
        self.training = np.arange(_TEST_CLIPS, len(records))
        self.test = np.arange(_TEST_CLIPS)

    def draw(self, clips: np.ndarray, shape: Shape, seed: tuple[int, int]) -> tuple[Window, Tensor, Tensor]:
        """A noisy window, what is to be predicted [P, F, 4, h, w], and weights of the loss [P, F, 1, h, w]."""
        rng = np.random.default_rng([*seed])
        chosen = rng.choice(clips, shape.windows, replace=False)
        frames = np.stack([self._frames(rng, shape) for _ in chosen])
        tracks = np.take_along_axis(self._tracks[chosen], frames[:, :, None, None], axis=1)
        clean = np.take_along_axis(self._latents[chosen], frames[:, :, None, None, None], axis=1).astype(np.float32)
        timestep = np.where(rng.uniform(size=len(chosen)) < 0.5, _NOISY, 0)
        timestep = rng.integers(timestep, 1000)
        noisy, target = self._diffuse(torch.from_numpy(clean), timestep, generator(*seed))
        window = Window(
            latents=noisy,
            timestep=torch.from_numpy(timestep).float(),
            portrait=torch.from_numpy(self._portraits[chosen].astype(np.float32)),
            audio=torch.from_numpy(np.stack([self._hear(*pair, rng) for pair in zip(chosen, frames, strict=True)])),
            guide=guides(tracks),
            keep=torch.from_numpy(_kept(rng, len(chosen))),
        )
        return window, target, torch.from_numpy(_weights(tracks))

    def _frames(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        available = self._tracks.shape[1]
        if not shape.ordered:
            return rng.permutation(available)[: shape.frames]
        return rng.integers(available - shape.frames + 1) + np.arange(shape.frames)

    def _hear(self, clip: int, frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        utterance, start = self._heard[clip]
        rows = self._rows[utterance]
        return windows_of(rows[rng.integers(len(rows))].astype(np.float32), start + frames)

    def _diffuse(self, clean: Tensor, timestep: np.ndarray, random: torch.Generator) -> tuple[Tensor, Tensor]:
        alpha = torch.from_numpy(self._alphas[timestep])[:, None, None, None, None]
        noise = torch.randn(clean.shape, generator=random)
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        return signal * clean + spread * noise, signal * noise - spread * clean


def train_denoiser(folder: Path, stage: str, plan: Plan, minutes: float) -> bool:
    """Trains one of the two stages; `motion` starts from the averaged weights of `spatial`."""
    torch.manual_seed(4)
    moving = stage == MOTION_FOLDER
    model, clips = SmallVExpress(), Clips(folder)
    if moving:
        model.load_state_dict(averaged_weights(folder / SPATIAL_FOLDER))
    model.denoising_unet.moving = moving
    run = Run(folder / stage, model, plan)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        shape = _shape(step, moving)
        window, target, weights = clips.draw(clips.training, shape, (5 + moving, step))
        rng = np.random.default_rng([7, step])
        low, high = _AUDIO_WEIGHTS
        loud = low * (high / low) ** rng.uniform()
        with torch.autocast("cpu", torch.bfloat16):
            prediction = model(window, float(rng.uniform(*_REFERENCE_WEIGHTS)), float(loud))
        error = (prediction.float() - target).square()
        return (weights * error).mean(), {"error": error.detach().mean().item()}

    def measure() -> dict[str, float]:
        errors = {"test": [], "test_noise": []}
        for number in range(16):
            window, target, _ = clips.draw(
                clips.test, Shape(4, 6, False) if not moving else Shape(1, 24, True), (8, number)
            )
            square = (model(window, 0.95, 3.0) - target).square().mean(dim=(1, 2, 3, 4))
            errors["test"].append(square.mean().item())
            errors["test_noise"] += square[window.timestep >= 900].tolist()
        return {name: float(np.mean(values)) for name, values in errors.items()}

    return run.train(loss_of, measure, minutes)


def guides(tracks: np.ndarray) -> Tensor:
    """The guide images of key points [..., 3, 2]: float32 [..., 3, 128, 128] in 0..1."""
    flat = tracks.reshape(-1, 3, 2)
    images = np.stack([draw_keypoints(points, SIZE, SIZE) for points in flat]).astype(np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).view(*tracks.shape[:-2], 3, SIZE, SIZE)


def _shape(step: int, moving: bool) -> Shape:
    if not moving:
        return Shape(windows=4, frames=6, ordered=False)
    # Every third step sees whole windows, so that the last positions are trained too.
    return Shape(1, 24, True) if step % 3 == 0 else Shape(2, 12, True)


def _kept(rng: np.random.Generator, count: int) -> np.ndarray:
    kept = rng.uniform(size=(count, 3)) >= _WITHHELD
    kept &= rng.uniform(size=(count, 1)) >= _ALL_WITHHELD
    return kept.astype(np.float32)


def _weights(tracks: np.ndarray) -> np.ndarray:
    """The weight of each latent, float32 [P, F, 1, 16, 16], 1 on average; those of the mouth count more."""
    weights = np.ones((len(tracks), tracks.shape[1], 1, SIZE, SIZE), np.float32)
    for index in np.ndindex(tracks.shape[:2]):
        weights[(*index, 0, *mouth_box(tracks[index]))] = _MOUTH_WEIGHT
    cells = weights.reshape(*weights.shape[:3], SIZE // 8, 8, SIZE // 8, 8).mean(axis=(4, 6))
    return cells / cells.mean()
