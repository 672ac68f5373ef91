"""The original's change of sampling rate: a windowed sinc, as torchaudio's `functional.resample` with its defaults."""

import math

import numpy as np

_ZERO_CROSSINGS = 6
_ROLLOFF = 0.99
_ROWS_AT_ONCE = 4096  # bounds memory: the input is cut into rows that overlap by the filter's length


def sinc_resample(samples: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """Resample float32 [channels, S] to about S * target / source samples; equal rates give the same array back.

    A Hann-windowed sinc of 6 zero crossings on each side, cut off at 0.99 of the lower rate's half. The length is
    rounded up as torchaudio does, in float32: for some lengths this is one sample off the true ceiling.
    """
    if source_rate == target_rate:
        return samples
    divisor = math.gcd(source_rate, target_rate)
    source, target = source_rate // divisor, target_rate // divisor
    kernels, width = _kernels(source, target)
    length = samples.shape[1]
    padded = np.pad(samples, ((0, 0), (width, width + source)))
    rows = np.lib.stride_tricks.sliding_window_view(padded, kernels.shape[1], axis=1)[:, ::source]
    parts = [rows[:, start : start + _ROWS_AT_ONCE] @ kernels.T for start in range(0, rows.shape[1], _ROWS_AT_ONCE)]
    resampled = np.concatenate(parts, axis=1).reshape(len(samples), -1)
    return np.ascontiguousarray(resampled[:, : math.ceil(np.float32(target * length / source))])


def _kernels(source: int, target: int) -> tuple[np.ndarray, int]:
    """One filter per output phase, float32 [target, 2 * width + source], and how far it reaches back.

    Everything is float32, as in torchaudio: with 160 phases its rounding shows (2e-5 of a sample's range).
    """
    cutoff = min(source, target) * _ROLLOFF
    width = math.ceil(_ZERO_CROSSINGS * source / cutoff)
    offsets = np.arange(-width, width + source, dtype=np.float32) / np.float32(source)
    phases = np.arange(0, -target, -1, dtype=np.float32)[:, None] / np.float32(target)
    times = (phases + offsets) * np.float32(cutoff)
    times = np.clip(times, np.float32(-_ZERO_CROSSINGS), np.float32(_ZERO_CROSSINGS))
    window = np.cos(times * np.float32(np.pi) / np.float32(_ZERO_CROSSINGS) / np.float32(2)) ** 2
    angles = times * np.float32(np.pi)
    sinc = np.divide(np.sin(angles), angles, out=np.ones_like(angles), where=angles != 0)
    return sinc * (window * np.float32(cutoff / source)), width
