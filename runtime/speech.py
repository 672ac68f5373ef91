"""Audio tokens of a clip's frames, encoded in parts when a window first needs them."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from vexpress_trt.engines.audio_geometry import AudioGeometry
from vexpress_trt.engines.call_sizes import WHOLE_AUDIO_SECONDS
from vexpress_trt.runtime.audio_features import AudioFeatures
from vexpress_trt.runtime.engine_loader import EngineLoader
from vexpress_trt.runtime.stages import encode_audio, project_audio
from vexpress_trt.runtime.summary import Stopwatch
from vexpress_trt.runtime.waveform import Waveform, WaveformStatistics

PART_SECONDS = 8.0
CONTEXT_SECONDS = 5.0  # of sound on each side that a part's encoding attends to besides its own


class Speech:
    """The tokens of any frames of a clip.

    A clip of up to a minute is one part: every hidden state attends to all others. Of a longer one, parts of eight
    seconds are encoded with some seconds of sound around them, and dropped when others are needed. What the encoder
    normalises over the whole clip it is given as such, so parts differ from the whole only by what attention beyond
    those seconds would add. The first part is encoded at once, before other engines take memory.
    """

    def __init__(
        self,
        engines: EngineLoader,
        waveform: Waveform,
        features: Callable[[int], AudioFeatures],
        *,
        frames: int,
        fps: float,
        live_frames: int,
        whole: bool,
        watch: Stopwatch,
        allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty,
    ) -> None:
        """`features` gives the rows of frames for a number of hidden states; `frames` is how many the clip's windows
        cover, and up to `live_frames` neighbouring ones are in use at a time. `whole` forbids parts. `allocate(shape,
        dtype)` makes the arrays in which tokens are kept."""
        self._engines = engines
        self._waveform = waveform
        self._watch = watch
        self._allocate = allocate
        self._geometry = AudioGeometry.of(engines.bundle.manifest.networks["wav2vec2"])
        self._states = self._geometry.states(len(waveform))
        self._features = features(self._states)
        self._frames = frames
        rate = engines.bundle.manifest.model.audio_sample_rate
        self._context = round(CONTEXT_SECONDS * rate / self._geometry.step)
        undivided = whole or len(waveform) <= WHOLE_AUDIO_SECONDS * rate
        self._part_frames = frames if undivided else max(1, round(PART_SECONDS * fps))
        parts = (self._features.states(at, at + self._part_frames) for at in range(0, frames, self._part_frames))
        self._part_states = max(last - first for first, last in parts) + 2 * self._context
        self._kept = 2 + live_frames // self._part_frames
        self._parts: OrderedDict[int, np.ndarray] = OrderedDict()
        with watch.stage("speech"):
            self._statistics = WaveformStatistics.of(waveform, self._geometry.kernel, self._geometry.stride)
        self._part(0)

    def window(self, start: int, out: np.ndarray) -> None:
        """Write the tokens of frames start to start + F - 1 to `out` [F, tokens, C]."""
        done = 0
        while done < len(out):
            number, offset = divmod(start + done, self._part_frames)
            part = self._part(number)[offset : offset + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)

    def _part(self, number: int) -> np.ndarray:
        """The tokens of one part's frames, [frames, tokens, C]."""
        if number in self._parts:
            self._parts.move_to_end(number)
            return self._parts[number]
        while len(self._parts) >= self._kept:
            self._parts.popitem(last=False)
        with self._watch.stage("speech"):
            self._parts[number] = tokens = self._encode(number)
        return tokens

    def _encode(self, number: int) -> np.ndarray:
        start = number * self._part_frames
        stop = min(start + self._part_frames, self._frames)
        first, last = 0, self._states
        if stop - start < self._frames:
            # As many states for every part, so that all have one shape. Frames that only fill the last window may lie
            # behind the sound: they see no state, so any will do.
            seen, end = self._features.states(start, stop)
            first = min((seen if end else self._states) - self._context, self._states - self._part_states)
            first = max(0, first)
            last = min(self._states, first + self._part_states)
        begin, end = self._geometry.samples(first, last)
        samples = self._statistics.normalised(self._waveform.read(begin, end))
        hidden = encode_audio(self._engines, samples, self._statistics)
        return project_audio(
            self._engines,
            lambda low, high: self._features.windows(low, high, hidden, first),
            range(start, stop),
            self._allocate,
        )
