"""The same speech, cut or repeated to a length: what makes clips of any length from one recording."""

import wave
from math import isfinite
from pathlib import Path

import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.audio_input import SAMPLE_RATE, decode_audio

_FULL_SCALE = 32767
_WRITTEN_AT_ONCE = 60 * SAMPLE_RATE


def write_speech(source: Path, seconds: float, target: Path) -> Path:
    """Write the sound of `source` as a 16 kHz mono WAV of exactly `seconds`, repeated where it is shorter.

    Returns `target`. Raises UserError for a length that is not positive and a source that cannot be decoded.
    """
    count = round(seconds * SAMPLE_RATE) if isfinite(seconds) else 0
    if count < 1:
        raise UserError(f"{seconds:g} seconds of speech: give a positive number.")
    samples = decode_audio(source).waveform.read(0, count)
    pcm = (np.clip(samples, -1.0, 1.0) * _FULL_SCALE).astype("<i2")
    with wave.open(str(target), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        for start in range(0, count, _WRITTEN_AT_ONCE):
            places = np.arange(start, min(start + _WRITTEN_AT_ONCE, count)) % len(pcm)
            file.writeframes(pcm[places].tobytes())
    return target
