"""What sizes an engine is built for."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_model import SMALL_MODEL

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec, ModelConfig, TensorSpec
from vexpress_trt.engines.trt.profile import Profile, ProfileSettings
from vexpress_trt.engines.trt.size_flags import SIZE_FLAGS, Range
from vexpress_trt.runtime.request import GenerationRequest

DENOISER = GraphSpec(
    "denoiser_guided",
    "fp16",
    "d.onnx",
    (
        TensorSpec("latents", "float32", ("B", "F", 4, "h", "w")),
        TensorSpec("key_00", "float16", (1, 8, "((h + 1)//2)*((w + 1)//2)", 40)),
    ),
    (TensorSpec("prediction", "float32", ("B", 2, "F", 4, "h", "w")),),
    ("d.onnx",),
)
AUDIO = GraphSpec(
    "audio_encoder", "fp16", "a.onnx", (TensorSpec("waveform", "float32", (1, "S")),), DENOISER.outputs, ("a.onnx",)
)
GUIDER = GraphSpec(
    "kps_guider", "fp16", "k.onnx", (TensorSpec("rgb", "float32", ("N", 3, "8*h", "8*w")),), (), ("k.onnx",)
)
MODEL = replace(SMALL_MODEL, image_width=512, image_height=384, context_frames=24)


@pytest.fixture
def model() -> ModelConfig:
    return MODEL


def test_a_static_profile_has_one_size(model: ModelConfig) -> None:
    profile = ProfileSettings().of(DENOISER, model)
    assert profile.name == "B1_F24_h48_w64"
    assert profile.shapes(DENOISER.inputs[0].shape) == ((1, 24, 4, 48, 64),) * 3
    assert profile.shapes(DENOISER.inputs[1].shape) == ((1, 8, 24 * 32, 40),) * 3


def test_a_dynamic_profile_has_a_range(model: ModelConfig) -> None:
    profile = ProfileSettings("dynamic", image_width=256, window_batch=4).of(DENOISER, model)
    assert profile.name == "B1-1-4_F12-24-24_h24-48-48_w16-32-32"
    assert profile.shapes(("B", "F", "h", "w")) == ((1, 12, 24, 16), (1, 24, 48, 32), (4, 24, 48, 32))


def test_the_largest_sizes_of_a_range_are_a_profile_of_their_own(model: ModelConfig) -> None:
    profile = ProfileSettings("dynamic", image_width=256, window_batch=4).of(DENOISER, model).at_largest()
    assert profile.shapes(("B", "F", "h", "w")) == ((4, 24, 48, 32),) * 3


@pytest.mark.parametrize("name", ["image_width", "image_height", "window_batch"])
@pytest.mark.parametrize("size", [0, 1, 56, 60, 64, 65, 72, 2048, 2056])
def test_a_build_takes_a_size_where_a_request_does(model: ModelConfig, name: str, size: int) -> None:
    asked = GenerationRequest(Path("portrait.png"), Path("speech.wav"), **{name: size})
    if ProfileSettings(**{name: size}).problem(model):
        with pytest.raises(UserError, match=name):
            asked.validate()
    else:
        asked.validate()


def test_the_length_of_the_audio_is_always_a_range(model: ModelConfig) -> None:
    smallest, best, largest = ProfileSettings().of(AUDIO, model).shapes((1, "S"))
    assert smallest[1] < best[1] == 8 * 16_000 < largest[1] == 60 * 16_000


def test_a_range_can_be_said_for_every_size(model: ModelConfig) -> None:
    settings = ProfileSettings("dynamic", Range(256, 512, 768), Range(256, 256, 320), Range(8, 12, 16), Range(2, 3, 4))
    assert settings.of(DENOISER, model).name == "B2-3-4_F8-12-16_h32-32-40_w32-64-96"
    assert settings.of(GUIDER, model).name == "N1-8-8_h32-32-40_w32-64-96"


def test_sizes_without_a_range_stay_what_they_are_beside_one(model: ModelConfig) -> None:
    profile = ProfileSettings("dynamic", image_width=Range(256, 256, 256), window_batch=2).of(DENOISER, model)
    assert profile.name == "B1-1-2_F12-24-24_h24-48-48_w32"


def test_one_number_of_seconds_is_the_longest_speech(model: ModelConfig) -> None:
    for kind in ("static", "dynamic"):
        assert ProfileSettings(kind, audio_seconds=20.0).of(AUDIO, model).name == "S800-128000-320000"
        assert ProfileSettings(kind, audio_seconds=2.5).of(AUDIO, model).name == "S800-40000-40000"
        assert ProfileSettings(kind, audio_seconds=Range(1.0, 2.0, 18.5)).of(AUDIO, model).name == "S16000-32000-296000"


@pytest.mark.parametrize(
    ("symbol", "text", "read"),
    [
        ("w", "512", 512),
        ("w", "256-512", Range(256, 512, 512)),
        ("h", "256-384-512", Range(256, 384, 512)),
        ("F", "12-24", Range(12, 24, 24)),
        ("B", "1-4", Range(1, 1, 4)),
        ("B", "1-4-4", Range(1, 4, 4)),
        ("S", "18.5", 18.5),
        ("S", "1-18.5", Range(1.0, 8.0, 18.5)),
        ("S", "10-18.5", Range(10.0, 10.0, 18.5)),
        ("S", "1-4", Range(1.0, 4.0, 4.0)),
    ],
)
def test_a_flag_is_read_and_said_alike(symbol: str, text: str, read: int | float | Range) -> None:
    assert SIZE_FLAGS[symbol].parse(text) == read
    assert SIZE_FLAGS[symbol].text(read) == text


@given(st.data())
def test_every_size_in_a_range_is_taken_and_none_outside_of_it(data: st.DataObject) -> None:
    def rising(low: int, high: int, step: int = 1) -> Range:
        sizes = data.draw(st.lists(st.integers(low, high), min_size=3, max_size=3).map(sorted))
        return Range(*(size * step for size in sizes))

    told_ = ProfileSettings("dynamic", rising(8, 256, 8), rising(8, 256, 8), rising(1, 32), rising(1, 64))
    told_.check(MODEL)
    profile = told_.of(DENOISER, MODEL)
    assert Profile.parse(profile.name) == profile
    within = {
        symbol: data.draw(st.integers(own.smallest, own.largest), label=symbol)
        for symbol, own in profile.ranges.items()
    }
    assert profile.takes(within)
    assert profile.at_largest().shapes(("B", "F", "h", "w"))[0] == profile.shapes(("B", "F", "h", "w"))[2]
    for symbol, unit in {"w": 8, "h": 8, "F": 1, "B": 1}.items():
        told = getattr(told_, SIZE_FLAGS[symbol].name)
        assert not profile.takes(within | {symbol: told.smallest // unit - 1})
        assert profile.takes(within | {symbol: told.smallest // unit})
        assert profile.takes(within | {symbol: told.largest // unit})
        assert not profile.takes(within | {symbol: told.largest // unit + 1})
        assert not profile.takes({other: size for other, size in within.items() if other != symbol})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (ProfileSettings(image_width=100), "--image_width 100"),
        (ProfileSettings(image_height=56), "--image_height 56: must be a multiple of 8 from 64 to 2048"),
        (ProfileSettings(image_height=0), "--image_height 0"),
        (ProfileSettings(context_frames=33), "--context_frames 33"),
        (ProfileSettings(context_frames=0), "--context_frames 0"),
        (ProfileSettings(window_batch=0), "--window_batch 0"),
        (
            ProfileSettings("dynamic", image_width=Range(512, 256, 256)),
            r"--image_width 512-256: MIN must not be above BEST, nor BEST above MAX .each a multiple of 8 from",
        ),
        (ProfileSettings("dynamic", image_height=Range(64, 512, 256)), "--image_height 64-512-256: MIN must not be"),
        (ProfileSettings("dynamic", image_height=Range(64, 100, 256)), "--image_height 64-100-256: must be a multiple"),
        (ProfileSettings("dynamic", image_width=Range(56, 256, 256)), "--image_width 56-256: .* from 64 to 2048"),
        (ProfileSettings("dynamic", image_width=Range(64, 64, 2056)), "--image_width 64-64-2056: .* from 64 to 2048"),
        (
            ProfileSettings("dynamic", context_frames=Range(8, 33, 33)),
            "--context_frames 8-33: must be from 1 to 32 for this model",
        ),
        (ProfileSettings("dynamic", window_batch=Range(0, 0, 4)), "--window_batch 0-4: must be from 1 to 64"),
        (ProfileSettings(image_width=Range(256, 512, 512)), "--image_width 256-512: a range needs --profile dynamic"),
        (ProfileSettings(audio_seconds=61.0), "--audio_seconds 61: must be from 0.05 to 60"),
        (ProfileSettings(audio_seconds=Range(0.0, 8.0, 60.0)), "--audio_seconds 0-60: must be from 0.05 to 60"),
        (ProfileSettings(audio_seconds=float("nan")), "--audio_seconds nan: must be from 0.05 to 60"),
        (ProfileSettings(audio_seconds=Range(9.0, 9.0, 4.0)), "--audio_seconds 9-9-4: MIN must not be above BEST"),
        (ProfileSettings(audio_seconds=Range(8.0, 8.0, 8.0)), "--audio_seconds 8-8: speech has no fixed length"),
    ],
)
def test_sizes_the_model_cannot_have_are_refused(model: ModelConfig, settings: ProfileSettings, said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings.check(model)
