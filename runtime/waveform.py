"""A clip's speech as samples on disk, and what must be known of all of it before a part can be encoded."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import temporary_folder

_BLOCK = 1 << 18  # samples read at a time when all are gone through
_VARIANCE_EPSILON = 1e-7  # as wav2vec2's feature extractor


class Waveform:
    """Float32 samples in a temporary file without a name: however long the sound, memory holds what is being read."""

    def __init__(self, pieces: Iterable[np.ndarray]) -> None:
        """Stores the pieces, each float32 [n]. Raises UserError where the disk is full or not writable."""
        folder = temporary_folder()
        self._count = 0
        try:
            self._file = tempfile.TemporaryFile(prefix="vexpress-", dir=folder)  # noqa: SIM115 - lives as long as this
            for piece in pieces:
                self._file.write(np.ascontiguousarray(piece, np.float32).data)
                self._count += len(piece)
            self._file.flush()
        except OSError as problem:
            raise UserError(
                f"{folder} has no room for the decoded sound ({problem.strerror}): free some space or "
                "set TMPDIR to a folder on another disk."
            ) from None

    def __len__(self) -> int:
        return self._count

    def truncate(self, count: int) -> None:
        """Forget all samples from number `count` on."""
        self._count = min(self._count, count)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Samples start to stop - 1 (None: to the end), float32 [n]; fewer where the sound ends before."""
        start, stop = min(start, self._count), self._count if stop is None else min(stop, self._count)
        samples = np.empty(max(0, stop - start), np.float32)
        view, offset = memoryview(samples).cast("B"), start * samples.itemsize
        while len(view):
            read = os.preadv(self._file.fileno(), [view], offset)
            if not read:
                raise OSError("the temporary file of the decoded sound was cut short")
            view, offset = view[read:], offset + read
        return samples

    def blocks(self) -> Iterator[np.ndarray]:
        """All samples in order, in blocks."""
        for start in range(0, self._count, _BLOCK):
            yield self.read(start, start + _BLOCK)


@dataclass(frozen=True, eq=False)
class WaveformStatistics:
    """Mean and standard deviation of all samples; mean [K] and a factor R [K, K] of the covariance R^T R of the
    windows that the audio encoder's first convolution sees in the waveform made zero mean and unit variance."""

    mean: float
    deviation: float
    window_mean: np.ndarray
    window_factor: np.ndarray

    @classmethod
    def of(cls, waveform: Waveform, kernel: int, stride: int) -> "WaveformStatistics":
        """Windows of `kernel` samples, `stride` apart. One pass, all sums in float64."""
        total = squares = 0.0
        windows, window_sum, products = 0, np.zeros(kernel), np.zeros((kernel, kernel))
        for block, fresh in _blocks(waveform, kernel, stride):
            total += block[:fresh].sum()
            squares += block[:fresh] @ block[:fresh]
            seen = np.lib.stride_tricks.sliding_window_view(block, kernel)[::stride] if len(block) >= kernel else ()
            if len(seen):
                seen = np.ascontiguousarray(seen.T)
                windows += seen.shape[1]
                window_sum += seen.sum(axis=1)
                products += seen @ seen.T
        mean = total / len(waveform)
        deviation = float(np.sqrt(max(0.0, squares / len(waveform) - mean**2) + _VARIANCE_EPSILON))
        raw_mean = window_sum / max(1, windows)
        covariance = (products / max(1, windows) - np.outer(raw_mean, raw_mean)) / deviation**2
        values, vectors = np.linalg.eigh(covariance)
        factor = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
        window_mean = (raw_mean - mean) / deviation if windows else raw_mean
        return cls(mean, deviation, window_mean.astype(np.float32), factor.astype(np.float32))

    def normalised(self, samples: np.ndarray) -> np.ndarray:
        """Samples of the clip, float32 [n], as the audio encoder takes them."""
        return ((samples - self.mean) / self.deviation).astype(np.float32)


def _blocks(waveform: Waveform, kernel: int, stride: int) -> Iterator[tuple[np.ndarray, int]]:
    """Float64 blocks that hold every window once, each beginning with a window, and how many of a block's samples were
    not in the one before."""
    step = _BLOCK // stride * stride
    for start in range(0, len(waveform), step):
        block = waveform.read(start, start + step + kernel - stride).astype(np.float64)
        yield block, min(step, len(block))
