"""From the audio encoder's hidden states to the rows each frame's projection sees."""

import numpy as np

from vexpress_trt.runtime.resampling import stretch_positions, taps_at

ROWS_PER_FRAME = 2


class AudioFeatures:
    """Two rows per frame on a common time axis, of which each frame sees its own and its neighbours'.

    Frame i sees rows 2 (i - pad) to 2 (i + pad) + 1; rows before the first and behind the last are zero. A row lies
    between two hidden states and is interpolated linearly (golden README, section 4, "Audio windows").
    """

    def __init__(self, states: int, positions: np.ndarray, pad: int) -> None:
        """`states`: how many hidden states the clip has; `positions`: where each row lies among them; `pad`: frames on
        each side."""
        self._taps = taps_at(positions, states)
        self._rows = len(positions)
        self._pad = pad

    @classmethod
    def stretched(cls, states: int, frames: int, pad: int) -> "AudioFeatures":
        """Upstream's: the hidden states stretched over all frames, whatever the frame rate."""
        return cls(states, stretch_positions(states, ROWS_PER_FRAME * frames, np.float32), pad)

    @classmethod
    def timed(cls, states: int, seconds: float, fps: float, rate: float, pad: int) -> "AudioFeatures":
        """By time: row j stands at (j + 0.5) / (2 fps) seconds, hidden state m at (m + 0.5) / rate; rows end with the
        audio's `seconds`."""
        times = (np.arange(int(np.ceil(ROWS_PER_FRAME * fps * seconds - 0.5))) + 0.5) / (ROWS_PER_FRAME * fps)
        return cls(states, times * rate - 0.5, pad)  # float64: exact hours into a clip

    def states(self, start: int, stop: int) -> tuple[int, int]:
        """The hidden states, first and behind the last, that frames start to stop - 1 see; (0, 0) if none."""
        low, high = self._clipped(start, stop)
        return (int(self._taps.low[low]), int(self._taps.high[high - 1]) + 1) if low < high else (0, 0)

    def windows(self, start: int, stop: int, hidden: np.ndarray, first: int = 0) -> np.ndarray:
        """The rows of frames start to stop - 1: float32 [N, 2 (2 pad + 1), D].

        `hidden`: float32 [T, D], the clip's hidden states from number `first` on, at least those in `states`.
        """
        begin = ROWS_PER_FRAME * (start - self._pad)
        rows = np.zeros((ROWS_PER_FRAME * (stop - start + 2 * self._pad), hidden.shape[1]), np.float32)
        low, high = self._clipped(start, stop)
        if low < high:
            rows[low - begin : high - begin] = self._taps.part(low, high).apply(hidden, first)
        width = ROWS_PER_FRAME * (2 * self._pad + 1)
        return np.stack([rows[ROWS_PER_FRAME * i : ROWS_PER_FRAME * i + width] for i in range(stop - start)])

    def _clipped(self, start: int, stop: int) -> tuple[int, int]:
        """The rows that exist among those the frames see."""
        return max(ROWS_PER_FRAME * (start - self._pad), 0), min(ROWS_PER_FRAME * (stop + self._pad), self._rows)
