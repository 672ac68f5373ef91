"""Speech by espeak-ng: many voices, texts of our own, and how recordings are made worse for training.

Utterance numbers stand for text, voice, pitch and speed. Held-out utterances have other texts and other voices.
"""

import io
import shutil
import subprocess
import wave
from dataclasses import dataclass

import numpy as np

from vexpress_trt.models.mini.corpus import sentence
from vexpress_trt.models.mini.drive import SAMPLE_RATE
from vexpress_trt.runtime.resample import sinc_resample

PROGRAM = "espeak-ng"
_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-029")
VOICES = """m1 m2 m3 m4 m5 m6 f1 f2 f3 f4 adam Alex alicia Andrea belinda benjamin caleb david ed edward Gene linda
max rob robert travis victor Lee Mike Denis""".split()
HELD_OUT_VOICES = "m7 m8 f5 steph michael anika paul".split()
_SENTENCES = 2  # per utterance


@dataclass(frozen=True)
class Utterance:
    """What is said and how. `pitch` is espeak's 0..99, `speed` in words per minute."""

    text: str
    accent: str
    voice: str
    pitch: int
    speed: int


def plan_utterance(number: int, *, held_out: bool) -> Utterance:
    """Utterance `number` (0, 1, ...) of the training or the held-out speech."""
    rng = np.random.default_rng([number, int(held_out), 0x5A])
    voices = HELD_OUT_VOICES if held_out else VOICES
    return Utterance(
        text=" ".join(sentence(_SENTENCES * number + i, held_out=held_out) for i in range(_SENTENCES)),
        accent=_ACCENTS[rng.integers(len(_ACCENTS))],
        voice=voices[rng.integers(len(voices))],
        pitch=int(rng.integers(25, 75)),
        speed=int(rng.integers(125, 185)),
    )


def speak(utterance: Utterance) -> np.ndarray:
    """The utterance as float32 [S] of 16 kHz with a peak of 0.7 and a third of a second of silence on both sides.

    Raises FileNotFoundError without espeak-ng, RuntimeError where it fails.
    """
    if shutil.which(PROGRAM) is None:
        raise FileNotFoundError(f"{PROGRAM} is not installed; get it with `apt-get install {PROGRAM}`")
    command = [
        PROGRAM, "-v", f"{utterance.accent}+{utterance.voice}", "-p", str(utterance.pitch), "-s", str(utterance.speed),
        "--stdout", utterance.text,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        raise RuntimeError(f"{PROGRAM} failed on {utterance}: {done.stderr.decode(errors='replace').strip()}")
    with wave.open(io.BytesIO(done.stdout)) as file:
        rate = file.getframerate()
        data = file.readframes(file.getnframes())
    samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768
    samples = sinc_resample(samples[None], rate, SAMPLE_RATE)[0]
    pause = np.zeros(SAMPLE_RATE // 3, np.float32)
    return np.concatenate([pause, 0.7 * samples / max(float(np.abs(samples).max()), 1e-3), pause])


def worsen(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The recording float32 [S] with another gain, and often with noise, hum or a changed spectrum."""
    result = samples.astype(np.float64)
    level = np.sqrt(np.mean(result**2)) + 1e-6
    if rng.uniform() < 0.5:  # a room or a microphone that favours low or high sounds
        tilt = rng.uniform(-0.5, 0.5)
        result[1:] = result[1:] + tilt * result[:-1]
    if rng.uniform() < 0.6:
        noise = rng.standard_normal(len(result))
        if rng.uniform() < 0.5:
            noise = np.convolve(noise, np.ones(8) / np.sqrt(8), mode="same")
        result += level * 10 ** (-rng.uniform(15, 40) / 20) * noise
    if rng.uniform() < 0.3:
        times = np.arange(len(result)) / SAMPLE_RATE
        tone = np.sin(2 * np.pi * rng.uniform(50, 3000) * times)
        result += level * 10 ** (-rng.uniform(18, 40) / 20) * tone
    return (result * 10 ** (rng.uniform(-12, 3) / 20)).astype(np.float32)
