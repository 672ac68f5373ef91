"""From the audio encoder's hidden states to the rows each frame's projection sees."""

import numpy as np

from vexpress_trt.runtime.resampling import stretch_positions, taps_at

ROWS_PER_FRAME = 2
_VARIANCE_EPSILON = 1e-7  # as wav2vec2's feature extractor


def normalise(samples: np.ndarray) -> np.ndarray:
    """The waveform float32 [S] with zero mean and unit variance over the whole clip."""
    mean, variance = samples.mean(dtype=np.float64), samples.var(dtype=np.float64)
    return ((samples - mean) / np.sqrt(variance + _VARIANCE_EPSILON)).astype(np.float32)


class AudioFeatures:
    """Two rows per frame on a common time axis, read lazily: `windows` gives each frame its rows and its neighbours'.

    Frame i sees rows 2 (i - pad) to 2 (i + pad) + 1; rows before the first and behind the last are zero. A row lies
    between two hidden states and is interpolated linearly (golden README, section 4, "Audio windows").
    """

    def __init__(self, hidden: np.ndarray, positions: np.ndarray, pad: int) -> None:
        """`hidden`: float32 [T, D]; `positions`: where each row lies among them; `pad`: frames on each side."""
        self._hidden = hidden
        self._taps = taps_at(positions, len(hidden))
        self._rows = len(positions)
        self._pad = pad

    @classmethod
    def stretched(cls, hidden: np.ndarray, frames: int, pad: int) -> "AudioFeatures":
        """Upstream's: the hidden states stretched over all frames, whatever the frame rate."""
        return cls(hidden, stretch_positions(len(hidden), ROWS_PER_FRAME * frames, np.float32), pad)

    @classmethod
    def timed(cls, hidden: np.ndarray, seconds: float, fps: float, rate: float, pad: int) -> "AudioFeatures":
        """By time: row j stands at (j + 0.5) / (2 fps) seconds, hidden state m at (m + 0.5) / rate; rows end with the
        audio's `seconds`."""
        times = (np.arange(int(np.ceil(ROWS_PER_FRAME * fps * seconds - 0.5))) + 0.5) / (ROWS_PER_FRAME * fps)
        return cls(hidden, times * rate - 0.5, pad)  # float64: exact hours into a clip

    def windows(self, start: int, stop: int) -> np.ndarray:
        """The rows of frames start to stop - 1: float32 [N, 2 (2 pad + 1), D]."""
        first = ROWS_PER_FRAME * (start - self._pad)
        rows = self._read(first, ROWS_PER_FRAME * (stop + self._pad))
        width = ROWS_PER_FRAME * (2 * self._pad + 1)
        return np.stack([rows[ROWS_PER_FRAME * i : ROWS_PER_FRAME * i + width] for i in range(stop - start)])

    def _read(self, first: int, last: int) -> np.ndarray:
        rows = np.zeros((last - first, self._hidden.shape[1]), np.float32)
        low, high = max(first, 0), min(last, self._rows)
        if low < high:
            rows[low - first : high - first] = self._taps.part(low, high).apply(self._hidden)
        return rows
