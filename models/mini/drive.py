"""What the drawn mouth does while a sound is heard: a deterministic function of the waveform.

It opens with the energy in the band of the vowels' first formants and is spread or rounded by where the spectrum's
weight lies. Each frame looks equally far to both sides, so the mouth has no lag.
"""

from dataclasses import dataclass

import numpy as np

SAMPLE_RATE = 16_000
FPS = 25
_WINDOW, _HOP = 400, 160  # 25 ms every 10 ms
_SPECTRUM = 512
_VOWEL_BAND, _SHAPE_BAND = (350.0, 2800.0), (250.0, 3600.0)  # Hz
_SHUT, _WIDE_OPEN = -26.0, 1.0  # dB below the loud passages of the clip (their 95th percentile)
_FRAME_DEVIATION = 0.032  # seconds over which a frame listens
_ROUND, _SPREAD = 520.0, 1350.0  # Hz: centre of the spectrum of rounded and of spread vowels
_POWER_FLOOR = 1e-8


@dataclass(frozen=True)
class MouthTrack:
    """`opening` and `width` of each frame, float32 [T] in 0..1 (see `features.Mouth`)."""

    opening: np.ndarray
    width: np.ndarray


def drive_mouth(samples: np.ndarray, fps: float = FPS) -> MouthTrack:
    """The mouth for a waveform float32 [S] of 16 kHz: floor(S / 16000 * fps) frames. Gain does not matter."""
    frames = int(len(samples) / SAMPLE_RATE * fps)
    power, frequencies = _spectrogram(samples)
    times = (np.arange(len(power)) * _HOP + _WINDOW / 2) / SAMPLE_RATE - _WINDOW / 2 / SAMPLE_RATE
    vowel = power[:, _inside(frequencies, _VOWEL_BAND)].sum(axis=1)
    shape_band = _inside(frequencies, _SHAPE_BAND)
    shaped = power[:, shape_band] * frequencies[shape_band] / 1000  # undoes part of the spectrum's natural fall
    heard = shaped.sum(axis=1)
    centre = shaped @ np.log(frequencies[shape_band])

    centres = (np.arange(frames) + 0.5) / fps
    listening = np.exp(-0.5 * ((centres[:, None] - times) / _FRAME_DEVIATION) ** 2)
    listening /= listening.sum(axis=1, keepdims=True)
    loudness = 10 * np.log10(listening @ vowel + _POWER_FLOOR * vowel.max() + 1e-20)
    loud = np.percentile(loudness, 95)
    opening = np.clip((loudness - loud - _SHUT) / (_WIDE_OPEN - _SHUT), 0, 1)

    # Where little is heard the mouth is neither round nor spread.
    wide_listening = np.exp(-0.5 * ((centres[:, None] - times) / (1.5 * _FRAME_DEVIATION)) ** 2)
    quiet = 0.003 * heard.max() + 1e-20
    neutral = np.log(np.sqrt(_ROUND * _SPREAD))
    middle = (wide_listening @ (centre + quiet * neutral)) / (wide_listening @ (heard + quiet))
    width = np.clip((middle - np.log(_ROUND)) / np.log(_SPREAD / _ROUND), 0, 1)
    return MouthTrack(_settled(opening**1.5).astype(np.float32), _settled(width).astype(np.float32))


def _spectrogram(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Power [N, bins], window n around sample n * hop, and the bins' frequencies in Hz."""
    padded = np.pad(samples.astype(np.float64), (_WINDOW // 2, _WINDOW))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[: len(samples) : _HOP]
    spectrum = np.fft.rfft(windows * np.hanning(_WINDOW), _SPECTRUM)
    return np.abs(spectrum) ** 2, np.fft.rfftfreq(_SPECTRUM, 1 / SAMPLE_RATE)


def _inside(frequencies: np.ndarray, band: tuple[float, float]) -> np.ndarray:
    return (frequencies >= band[0]) & (frequencies < band[1])


def _settled(curve: np.ndarray) -> np.ndarray:
    """Lips have mass: a short symmetric average over neighbouring frames."""
    padded = np.pad(curve, 1, mode="edge")
    return 0.2 * padded[:-2] + 0.6 * padded[1:-1] + 0.2 * padded[2:]
