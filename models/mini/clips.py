"""Clips of the drawn world: who speaks what, how the head moves, and the portrait that goes with it.

The portrait shows the same person in another pose, as a photograph of another day.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vexpress_trt.models.mini.drive import FPS
from vexpress_trt.models.mini.features import Mouth
from vexpress_trt.models.mini.identity import FIRST_HELD_OUT, Identity, draw_identity
from vexpress_trt.models.mini.pose import blink_path, head_path
from vexpress_trt.models.mini.world import render, render_clip

CLIP_FRAMES = 24
_PORTRAIT_SEED, _CLIP_SEED = 500_000_000, 700_000_000


@dataclass(frozen=True)
class Clip:
    """`track` [T, 3, 2] key points; `utterance` and `start` (a frame) say what is heard; the portrait has its own."""

    who: Identity
    track: np.ndarray
    mouths: tuple[Mouth, ...]
    blinks: np.ndarray
    portrait_keypoints: np.ndarray
    portrait_mouth: Mouth
    utterance: int
    start: int

    def render_frames(self) -> np.ndarray:
        """uint8 [T, 128, 128, 3]."""
        return render_clip(self.who, self.track, self.mouths, self.blinks)

    def render_portrait(self) -> np.ndarray:
        """uint8 [128, 128, 3], eyes open."""
        return render(self.who, self.portrait_keypoints, self.portrait_mouth)


def plan_clip(number: int, speech: Sequence[Mapping[str, np.ndarray]], frames: int, *, held_out: bool) -> Clip:
    """Clip `number` of the training or the held-out clips; each has an identity of its own."""
    identity = number + (FIRST_HELD_OUT if held_out else 0)
    rng = np.random.default_rng([identity, 0xC1])
    utterance = number % len(speech)
    opening, width = speech[utterance]["opening"], speech[utterance]["width"]
    start = int(rng.integers(max(1, len(opening) - frames)))
    heard = slice(start, start + frames)
    return Clip(
        who=draw_identity(identity),
        track=head_path(_CLIP_SEED + identity, frames, FPS),
        mouths=tuple(Mouth(float(o), float(w)) for o, w in zip(opening[heard], width[heard], strict=True)),
        blinks=blink_path(_CLIP_SEED + identity, frames, FPS),
        portrait_keypoints=head_path(_PORTRAIT_SEED + identity, 1, FPS)[0],
        portrait_mouth=Mouth(float(rng.uniform(0, 0.6)) if rng.uniform() < 0.4 else 0.0, float(rng.uniform(0.3, 0.7))),
        utterance=utterance,
        start=start,
    )
