"""The stage `speech`: utterances and what the drawn mouth does with them, on disk."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vexpress_trt.models.mini.drive import drive_mouth
from vexpress_trt.models.mini.records import write_missing
from vexpress_trt.models.mini.speech import plan_utterance, speak

TRAINING_UTTERANCES, HELD_OUT_UTTERANCES = 700, 40
TRAINING_FOLDER, HELD_OUT_FOLDER = "speech/training", "speech/held_out"


def write_speech(folder: Path) -> None:
    """Records with `samples` int16 [S] of 16 kHz, `opening` and `width` float32 [T] at 25 frames per second."""
    write_missing(folder / TRAINING_FOLDER, TRAINING_UTTERANCES, lambda number: _record(number, held_out=False))
    write_missing(folder / HELD_OUT_FOLDER, HELD_OUT_UTTERANCES, lambda number: _record(number, held_out=True))


def samples_of(record: Mapping[str, np.ndarray]) -> np.ndarray:
    """The waveform float32 [S]."""
    return record["samples"].astype(np.float32) / 32767


def _record(number: int, *, held_out: bool) -> dict[str, np.ndarray]:
    samples = speak(plan_utterance(number, held_out=held_out))
    mouth = drive_mouth(samples)
    return {
        "samples": np.rint(samples * 32767).astype(np.int16),
        "opening": mouth.opening,
        "width": mouth.width,
    }
