"""One recording makes speech of any length."""

from pathlib import Path

import numpy as np
import pytest
from media import write_wav

from vexpress_trt.bench.speech import write_speech
from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.audio_input import decode_audio

SAMPLES = np.random.default_rng(0).uniform(-0.5, 0.5, 1600).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.25])
def test_speech_is_cut_or_repeated(tmp_path: Path, seconds: float) -> None:
    source = write_wav(tmp_path / "a.wav", SAMPLES)
    samples = decode_audio(write_speech(source, seconds, tmp_path / "b.wav")).waveform.read()
    assert len(samples) == round(16_000 * seconds)
    np.testing.assert_allclose(samples, np.resize(SAMPLES, len(samples)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("seconds", [0.0, float("nan"), float("inf")])
def test_a_length_that_is_none_is_refused(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(UserError, match=f"{seconds:g} seconds of speech"):
        write_speech(write_wav(tmp_path / "a.wav", SAMPLES), seconds, tmp_path / "b.wav")
