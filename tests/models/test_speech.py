"""Speech and the mouth it drives: what opens it, what shapes it, and who may be heard in training."""

import shutil

import numpy as np
import pytest

from vexpress_trt.models.mini.corpus import sentence
from vexpress_trt.models.mini.drive import FPS, SAMPLE_RATE, drive_mouth
from vexpress_trt.models.mini.speech import HELD_OUT_VOICES, PROGRAM, VOICES, plan_utterance, speak, worsen


def vowel(seconds: float, formants: tuple[float, float], loudness: np.ndarray | float = 1.0) -> np.ndarray:
    """A buzz of 120 Hz with energy around two frequencies."""
    times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    harmonics = 120.0 * np.arange(1, 40)
    strength = sum(np.exp(-0.5 * ((harmonics - formant) / 120) ** 2) for formant in formants) + 0.01
    wave = (strength[:, None] * np.sin(2 * np.pi * harmonics[:, None] * times)).sum(axis=0)
    return (0.1 * loudness * wave).astype(np.float32)


def syllables(seconds: float, rate: float) -> np.ndarray:
    """Loudness of so many syllables per second, 0 to 1."""
    times = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return 0.5 - 0.5 * np.cos(2 * np.pi * rate * times)


def test_there_is_one_mouth_per_frame_within_its_range():
    track = drive_mouth(vowel(2.03, (600, 1200)))
    assert track.opening.shape == track.width.shape == (50,)
    assert track.opening.dtype == np.float32
    assert 0 <= min(track.opening.min(), track.width.min()) <= max(track.opening.max(), track.width.max()) <= 1


def test_the_mouth_opens_with_the_syllables_without_lag():
    loudness = syllables(4.0, 2.0)
    opening = drive_mouth(vowel(4.0, (700, 1300), loudness)).opening
    centres = ((np.arange(len(opening)) + 0.5) / FPS * SAMPLE_RATE).astype(int)
    wanted = loudness[centres]
    by_lag = {lag: np.corrcoef(opening[5:-5], np.roll(wanted, lag)[5:-5])[0, 1] for lag in range(-3, 4)}
    assert max(by_lag, key=by_lag.get) == 0
    assert by_lag[0] > 0.9


def test_silence_and_hiss_leave_the_mouth_shut():
    speech = vowel(1.0, (700, 1300))
    hiss = np.random.default_rng(0).standard_normal(SAMPLE_RATE)
    hiss = 0.02 * (hiss - np.convolve(hiss, np.ones(8) / 8, mode="same"))
    track = drive_mouth(np.concatenate([speech, np.zeros(SAMPLE_RATE), hiss]).astype(np.float32))
    assert track.opening[5:20].min() > 0.6
    assert track.opening[30:45].max() == 0
    assert track.opening[55:70].max() < 0.4


def test_front_vowels_spread_the_mouth_and_back_vowels_round_it():
    spread, rounded = drive_mouth(vowel(1.0, (350, 2300))).width, drive_mouth(vowel(1.0, (400, 750))).width
    assert spread[5:-5].min() > rounded[5:-5].max() + 0.4


def test_gain_does_not_matter():
    sound = vowel(2.0, (600, 1200), syllables(2.0, 3.0))
    loud, soft = drive_mouth(sound), drive_mouth(0.05 * sound)
    np.testing.assert_allclose(loud.opening, soft.opening, atol=1e-3)
    np.testing.assert_allclose(loud.width, soft.width, atol=1e-3)


def test_training_and_held_out_speech_share_neither_texts_nor_voices():
    training = [plan_utterance(number, held_out=False) for number in range(700)]
    held_out = [plan_utterance(number, held_out=True) for number in range(40)]
    assert not {u.text for u in training} & {u.text for u in held_out}
    assert not set(VOICES) & set(HELD_OUT_VOICES)
    assert {u.voice for u in training} <= set(VOICES)
    assert {u.voice for u in held_out} <= set(HELD_OUT_VOICES)


def test_there_are_hundreds_of_sentences_and_none_is_held_out():
    training = {sentence(number, held_out=False) for number in range(1400)}
    assert len(training) >= 400
    assert not training & {sentence(number, held_out=True) for number in range(80)}


def test_a_worsened_recording_is_as_long_and_repeatable():
    sound = vowel(1.0, (600, 1200))
    first, again = (worsen(sound, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == sound.shape
    assert np.abs(first - sound).max() > 0


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"{PROGRAM} is not installed")
def test_an_utterance_is_spoken_the_same_every_time():
    utterance = plan_utterance(0, held_out=True)
    sound = speak(utterance)
    np.testing.assert_array_equal(sound, speak(utterance))
    assert 3 < len(sound) / SAMPLE_RATE < 20
    assert drive_mouth(sound).opening.std() > 0.15
