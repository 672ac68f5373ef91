"""The demo's portrait and speech come with the package and are good enough to need no advice on their quality."""

import importlib.resources

import pytest

from vexpress_trt.runtime import advice
from vexpress_trt.runtime.audio_input import decode_audio, measure
from vexpress_trt.runtime.portrait import load_portrait


@pytest.fixture
def asset():
    folder = importlib.resources.files("vexpress_trt.models") / "demo"

    def path(name: str):
        with importlib.resources.as_file(folder / name) as file:
            return file

    return path


def test_portrait(asset):
    portrait = load_portrait(asset("portrait.jpg"), minimum=(512, 512))
    assert portrait.shape == (512, 512, 3)
    assert advice.blurred_portrait(portrait) is None


def test_speech(asset):
    audio = decode_audio(asset("speech.flac"))
    assert (audio.source_rate, audio.channels) == (16_000, 1)
    assert 3 < audio.duration < 6
    assert advice.doubtful_audio(measure(audio.samples)) is None


def test_their_origin_is_told(asset):
    text = asset("README.md").read_text(encoding="utf-8")
    for word in ("portrait.jpg", "speech.flac", "public domain", "espeak-ng"):
        assert word in text
