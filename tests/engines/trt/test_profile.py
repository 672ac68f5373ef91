"""What sizes an engine is built for."""

from dataclasses import replace

import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec, ModelConfig, TensorSpec
from vexpress_trt.engines.trt.profile import ProfileSettings

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


@pytest.fixture
def model(model_config: ModelConfig) -> ModelConfig:
    return replace(
        model_config, image_width=512, image_height=384, context_frames=24, max_context_frames=32, vae_scale_factor=8,
        audio_sample_rate=16_000,
    )  # fmt: skip


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


def test_a_build_has_the_bounds_of_a_request() -> None:
    from vexpress_trt.engines.trt import profile
    from vexpress_trt.runtime import request

    assert (profile.MIN_SIDE, profile.MAX_SIDE) == (request.MIN_SIDE, request.MAX_SIDE)


def test_the_length_of_the_audio_is_always_a_range(model: ModelConfig) -> None:
    smallest, best, largest = ProfileSettings().of(AUDIO, model).shapes((1, "S"))
    assert smallest[1] < best[1] == 8 * 16_000 < largest[1] == 60 * 16_000


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (ProfileSettings(image_width=100), "--image_width 100"),
        (ProfileSettings(image_height=56), "--image_height 56: must be a multiple of 8 from 64 to 2048"),
        (ProfileSettings(image_height=0), "--image_height 0"),
        (ProfileSettings(context_frames=33), "--context_frames 33"),
        (ProfileSettings(context_frames=0), "--context_frames 0"),
        (ProfileSettings(window_batch=0), "--window_batch 0"),
    ],
)
def test_sizes_the_model_cannot_have_are_refused(model: ModelConfig, settings: ProfileSettings, said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings.check(model)
