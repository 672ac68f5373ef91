"""Media files made on the spot."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

SoundMaker = Callable[..., Path]


@pytest.fixture(scope="session")
def make_sound() -> SoundMaker:
    """`make_sound(path, samples [channels, S], rate, codec, form)` writes a sound file and gives its path back."""
    av = pytest.importorskip("av")

    def write(path: Path, samples: np.ndarray, rate: int, codec: str = "pcm_s16le", form: str = "s16") -> Path:
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(samples)]
        planar = form.endswith("p")
        data = samples if planar else samples.T.reshape(1, -1)
        if form.startswith("s16"):
            data = np.clip(np.round(data * 32768), -32768, 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), format=form, layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=rate, layout=layout)
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def speech() -> np.ndarray:
    """Something like speech: float32 [1, 24000], 1.5 s at 16 kHz, syllables with pauses over a faint noise floor."""
    seconds = np.arange(24_000) / 16_000
    voice = sum(np.sin(2 * np.pi * 140 * k * seconds) / k for k in (1, 2, 3, 5, 8))
    syllables = np.clip(np.sin(2 * np.pi * 3 * seconds), 0, None) ** 0.5
    noise = np.random.default_rng(0).standard_normal(len(seconds))
    return (0.15 * voice * syllables + 0.0005 * noise)[None].astype(np.float32)
