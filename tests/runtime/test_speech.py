"""Tokens in parts equal those of the whole clip, but for what attention beyond a part's surroundings adds."""

from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.engines.audio_geometry import AudioGeometry
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.selection import choose_engines
from vexpress_trt.runtime import speech as speech_module
from vexpress_trt.runtime.audio_features import AudioFeatures
from vexpress_trt.runtime.engine_loader import EngineLoader
from vexpress_trt.runtime.speech import Speech
from vexpress_trt.runtime.summary import Stopwatch
from vexpress_trt.runtime.waveform import Waveform

SECONDS, FPS, FRAMES = 6.0, 10.0, 64  # four frames more than the sound has


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    noise = np.random.default_rng(3).normal(0, 0.1, int(SECONDS * 16_000))
    return (noise * np.linspace(0.1, 1, len(noise))).astype(np.float32)


def _speech(bundle: Path, samples: np.ndarray, *, live_frames: int = 16, whole: bool = False) -> Speech:
    opened = Bundle.open(bundle)
    watch = Stopwatch()
    return Speech(
        EngineLoader(opened, choose_engines(opened, backend="onnxruntime"), watch, threads=1),
        Waveform([samples]),
        lambda states: AudioFeatures.timed(states, SECONDS, FPS, 50.0, pad=2),
        frames=FRAMES,
        fps=FPS,
        live_frames=live_frames,
        whole=whole,
        watch=watch,
    )


def _tokens(speech: Speech, start: int = 0, stop: int = FRAMES) -> np.ndarray:
    tokens = np.full((stop - start, 5, 40), np.nan, np.float32)
    speech.window(start, tokens)
    return tokens


@pytest.fixture
def parts_of_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_module, "WHOLE_AUDIO_SECONDS", 3.0)
    monkeypatch.setattr(speech_module, "PART_SECONDS", 2.0)
    monkeypatch.setattr(speech_module, "CONTEXT_SECONDS", 1.0)


def test_any_window_is_part_of_the_whole(other_bundle: Path, samples: np.ndarray) -> None:
    speech = _speech(other_bundle, samples)
    whole = _tokens(speech)
    assert np.isfinite(whole).all()
    assert (_tokens(speech, 13, 37) == whole[13:37]).all()


def test_parts_with_all_the_sound_around_them_equal_the_whole(
    other_bundle: Path, samples: np.ndarray, monkeypatch: pytest.MonkeyPatch, parts_of_two_seconds: None
) -> None:
    expected = _tokens(_speech(other_bundle, samples, whole=True))
    monkeypatch.setattr(speech_module, "CONTEXT_SECONDS", SECONDS)
    np.testing.assert_allclose(_tokens(_speech(other_bundle, samples)), expected, rtol=1e-4, atol=2e-5)


def test_parts_differ_from_the_whole_only_by_distant_attention(
    other_bundle: Path, samples: np.ndarray, monkeypatch: pytest.MonkeyPatch, parts_of_two_seconds: None
) -> None:
    """Random weights attend to everything alike, so the difference is large, and falls with the sound around."""
    expected = _tokens(_speech(other_bundle, samples, whole=True))
    errors = []
    for context in (0.0, 1.0, 1.5):
        monkeypatch.setattr(speech_module, "CONTEXT_SECONDS", context)
        tokens = _tokens(_speech(other_bundle, samples))
        errors.append(np.square(tokens - expected).mean() / np.square(expected).mean())
    assert 0.1 > errors[0] > errors[1] > errors[2] > 0


def test_parts_are_encoded_when_needed_and_forgotten_when_not(
    other_bundle: Path, samples: np.ndarray, monkeypatch: pytest.MonkeyPatch, parts_of_two_seconds: None
) -> None:
    encoded = []
    original = Speech._encode
    monkeypatch.setattr(Speech, "_encode", lambda speech, number: encoded.append(number) or original(speech, number))
    speech = _speech(other_bundle, samples)
    assert encoded == [0]
    for start in range(0, FRAMES - 15, 4):
        _tokens(speech, start, start + 16)
    assert encoded == [0, 1, 2, 3]
    assert len(speech._parts) == 2


def test_all_parts_have_one_shape(
    other_bundle: Path, samples: np.ndarray, monkeypatch: pytest.MonkeyPatch, parts_of_two_seconds: None
) -> None:
    shapes = []
    original = speech_module.encode_audio

    def encode(engines: EngineLoader, part: np.ndarray, *more) -> np.ndarray:
        shapes.append(part.shape)
        return original(engines, part, *more)

    monkeypatch.setattr(speech_module, "encode_audio", encode)
    _tokens(_speech(other_bundle, samples))
    assert len(shapes) == 4 and len(set(shapes)) == 1


def test_geometry_is_that_of_the_convolutions() -> None:
    geometry = AudioGeometry.of({"conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2)})
    assert (geometry.kernel, geometry.stride, geometry.reach, geometry.step) == (10, 5, 400, 320)
    assert [geometry.states(samples) for samples in (399, 400, 719, 720, 16_000)] == [0, 1, 1, 2, 49]
    assert geometry.samples(3, 5) == (960, 1680)
