"""Linear resampling along time, with half-pixel centres: sample i of a sequence stands at i + 0.5 of its own steps."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LinearTaps:
    """Where output samples lie in a sequence: `(1 - weight) * x[low] + weight * x[high]`, each array [N]."""

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray

    def part(self, start: int, stop: int) -> "LinearTaps":
        """The taps of output samples start to stop - 1."""
        return LinearTaps(self.low[start:stop], self.high[start:stop], self.weight[start:stop])

    def apply(self, values: np.ndarray, first: int = 0) -> np.ndarray:
        """Interpolate `values` [T, ...], a sequence from its number `first` on, to [N, ...] in the weights' dtype."""
        weight = self.weight.reshape(-1, *(1,) * (values.ndim - 1))
        return (1 - weight) * values[self.low - first] + weight * values[self.high - first]


def stretch_positions(source: int, target: int, dtype: type) -> np.ndarray:
    """Positions in a sequence of `source` samples of `target` output samples that span all of it.

    `dtype` is float32 or float64. In long sequences a float32 position is coarse enough to be seen in the result, so it
    is rounded as torch rounds it (`F.interpolate`, linear, align_corners False): the scale first, then
    `scale * (i + 0.5) - 0.5` once, since torch's kernels compute that with a fused multiply-add.
    """
    scale = dtype(source) / dtype(target)
    centres = (np.arange(target) + 0.5).astype(dtype).astype(np.float64)
    return (float(scale) * centres - 0.5).astype(dtype)


def taps_at(positions: np.ndarray, count: int) -> LinearTaps:
    """Taps for positions among `count` samples; the sequence is constant before its first and behind its last one."""
    clamped = np.clip(positions, 0, count - 1)
    low = clamped.astype(np.int64)
    high = np.minimum(low + 1, count - 1)
    return LinearTaps(low, high, (clamped - low).astype(positions.dtype))
