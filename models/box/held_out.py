"""Clips of the drawn world that no training has seen: people, head movements, texts and voices of their own.

Their speech lies in `held_out/` as FLAC files (see `record.py`); everything else follows from a clip's number.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from vexpress_trt.models.box.box import BOX
from vexpress_trt.models.mini.drive import FPS, MouthTrack, drive_mouth
from vexpress_trt.models.mini.features import Mouth
from vexpress_trt.models.mini.identity import FIRST_HELD_OUT, Identity, draw_identity
from vexpress_trt.models.mini.pose import blink_path, head_path
from vexpress_trt.models.mini.world import render, render_clip
from vexpress_trt.runtime.audio_input import decode_audio

CLIPS, CLIP_FRAMES = 24, 44  # two windows of 24 frames that share 4, or five of 12
DEMO, DEMO_FRAMES = 1000, 100
SPEECH = BOX / "held_out"
# Training measures itself on the first held-out identities; these here are used for nothing else.
_FIRST = FIRST_HELD_OUT + 10_000
_PORTRAIT_POSES = 500_000
_SHUT = Mouth(0.0, 0.5)


@dataclass(frozen=True)
class HeldOutClip:
    """Clip `number`, 0 to 23 of the measurements or `DEMO`; 25 frames per second."""

    number: int

    @property
    def speech(self) -> Path:
        """A FLAC file of 16 kHz."""
        return speech_path(self.number)

    @cached_property
    def who(self) -> Identity:
        return draw_identity(_FIRST + self.number)

    @cached_property
    def samples(self) -> np.ndarray:
        """float32 [S]."""
        return decode_audio(self.speech).samples

    @cached_property
    def driven(self) -> MouthTrack:
        """What the mouth does while this is heard."""
        return drive_mouth(self.samples)

    @cached_property
    def track(self) -> np.ndarray:
        """Key points float32 [T, 3, 2] in pixels."""
        return head_path(_FIRST + self.number, len(self.driven.opening), FPS)

    @cached_property
    def portrait_keypoints(self) -> np.ndarray:
        """The portrait shows another pose than the clip, [3, 2]."""
        return head_path(_FIRST + _PORTRAIT_POSES + self.number, 1, FPS)[0]

    @cached_property
    def portrait(self) -> np.ndarray:
        """uint8 RGB [128, 128, 3], mouth shut."""
        return render(self.who, self.portrait_keypoints, _SHUT)

    @cached_property
    def truth(self) -> np.ndarray:
        """What a perfect model would generate (but for the blinks, which nothing tells it): uint8 [T, 128, 128, 3]."""
        mouths = [Mouth(float(o), float(w)) for o, w in zip(self.driven.opening, self.driven.width, strict=True)]
        return render_clip(self.who, self.track, mouths, blink_path(_FIRST + self.number, len(mouths), FPS))


def speech_path(number: int) -> Path:
    return SPEECH / ("demo.flac" if number == DEMO else f"{number:02d}.flac")


def held_out_clips(count: int = CLIPS) -> list[HeldOutClip]:
    """The first `count` clips. Raises ValueError where there are not as many."""
    if not 1 <= count <= CLIPS:
        raise ValueError(f"there are {CLIPS} held-out clips, not {count}")
    return [HeldOutClip(number) for number in range(count)]
