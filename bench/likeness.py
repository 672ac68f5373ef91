"""How much alike two results are: pictures in dB of their peak, tensors in dB of the signal."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PEAK = 255.0
_BLOCK = 16 << 20  # bytes of pictures compared at a time


@dataclass(frozen=True)
class PictureLikeness:
    """Frames after the median filter, uint8: PSNR in dB over all of them (None where they are identical), and the
    largest difference in levels of 0 to 255."""

    psnr_db: float | None
    largest_difference: int


@dataclass(frozen=True)
class TensorLikeness:
    """Signal-to-noise ratio in dB (None where they are identical) and the largest difference in the tensors' unit."""

    snr_db: float | None
    largest_difference: float


def compare_frames(one: Path, other: Path) -> PictureLikeness:
    """Two files of raw frames, bytes of the same number. Raises ValueError where their sizes differ or are 0."""
    size = one.stat().st_size
    if size != other.stat().st_size or not size:
        raise ValueError(f"{size} and {other.stat().st_size} bytes of frames cannot be compared")
    squares, largest = 0.0, 0
    with one.open("rb") as first, other.open("rb") as second:
        while block := first.read(_BLOCK):
            difference = np.frombuffer(block, np.uint8).astype(np.int16) - np.frombuffer(second.read(_BLOCK), np.uint8)
            squares += float(np.square(difference, dtype=np.int64).sum())
            largest = max(largest, int(np.abs(difference).max()))
    psnr = None if squares == 0 else float(10 * np.log10(_PEAK**2 * size / squares))
    return PictureLikeness(psnr, largest)


def compare_tensors(result: np.ndarray, reference: np.ndarray) -> TensorLikeness:
    """Two arrays of one shape; `reference` is the signal."""
    reference = reference.astype(np.float64)
    difference = result.astype(np.float64) - reference
    noise, signal = np.square(difference).sum(), np.square(reference).sum()
    snr = None if noise == 0 else float(10 * np.log10(signal / noise))
    return TensorLikeness(snr, float(np.abs(difference).max()))
