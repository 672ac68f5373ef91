"""A request is refused with a sentence before any file is opened."""

from dataclasses import replace
from pathlib import Path

import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.request import GenerationRequest

GOOD = GenerationRequest(reference_image_path="portrait.jpg", audio_path="speech.wav")


def test_the_defaults_are_valid_and_are_upstreams() -> None:
    GOOD.validate()
    assert (GOOD.num_inference_steps, GOOD.guidance_scale, GOOD.seed, GOOD.fps) == (25, 3.5, 42, 30.0)
    assert (GOOD.context_overlap, GOOD.num_pad_audio_frames) == (4, 2)
    assert (GOOD.reference_attention_weight, GOOD.audio_attention_weight) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"reference_image_path": None}, "--reference_image_path"),
        ({"audio_path": None}, "--audio_path"),
        ({"image_width": 100}, "--image_width 100"),
        ({"image_height": 56}, "--image_height 56"),
        ({"image_height": 4096}, "--image_height 4096"),
        ({"num_inference_steps": 0}, "--num_inference_steps 0"),
        ({"guidance_scale": float("nan")}, "--guidance_scale nan"),
        ({"guidance_scale": -1.0}, "--guidance_scale -1"),
        ({"audio_attention_weight": float("inf")}, "--audio_attention_weight inf"),
        ({"context_frames": 33}, "--context_frames 33"),
        ({"context_frames": 4}, "--context_overlap 4"),
        ({"fps": 0.0}, "--fps 0"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**40, "compat": "upstream"}, "--seed"),
        ({"retarget_strategy": "no_retarget"}, "--kps_path"),
        ({"retarget_strategy": "twist"}, "--retarget_strategy twist"),
        ({"backend": "abacus"}, "--backend abacus"),
        ({"kps_size": "512"}, "--kps_size 512"),
        ({"kps_size": "0,5"}, "--kps_size 0,5"),
        ({"window_batch": 0}, "--window_batch 0"),
        ({"solver": "euler"}, "--solver euler"),
        ({"guidance_interval": "0.5"}, "--guidance_interval 0.5"),
        ({"guidance_interval": "0.6,0.2"}, "--guidance_interval 0.6,0.2"),
        ({"guidance_interval": "0,1.5"}, "--guidance_interval 0,1.5"),
        ({"guidance_interval": "nan,1"}, "--guidance_interval nan,1"),
        ({"solver": "dpmpp_2m", "compat": "upstream"}, "--compat upstream"),
        ({"guidance_interval": "0,0.5", "compat": "upstream"}, "--compat upstream"),
    ],
)
def test_a_value_that_no_input_can_make_right_is_named(change: dict, names: str) -> None:
    with pytest.raises(UserError) as refusal:
        replace(GOOD, **change).validate()
    assert names in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "end"),
    [
        ({"preset": "realtime"}, "guides every step (--preset exact)."),
        ({"solver": "dpmpp_2m"}, "guides every step."),
    ],
)
def test_a_preset_that_is_not_the_originals_is_blamed(given: dict, end: str) -> None:
    request = GenerationRequest(reference_image_path="a.png", audio_path="b.wav", compat="upstream", **given)
    with pytest.raises(UserError) as refusal:
        request.validate()
    assert str(refusal.value).endswith(end)


def test_the_strategy_follows_from_the_track() -> None:
    assert GOOD.strategy == "fix_face"
    assert replace(GOOD, kps_path="kps.pth").strategy == "no_retarget"
    assert replace(GOOD, kps_path="kps.pth", retarget_strategy="naive_retarget").strategy == "naive_retarget"


def test_track_size_is_width_then_height() -> None:
    assert GOOD.track_size is None
    assert replace(GOOD, kps_size="640,480").track_size == (640, 480)


@pytest.mark.parametrize(
    ("interval", "guided"), [(None, [0, 1, 2, 3]), ("0,1", [0, 1, 2, 3]), ("0,0.5", [0, 1]), ("0.25,0.75", [1, 2])]
)
def test_the_guidance_interval_is_a_share_of_the_steps(interval: str | None, guided: list[int]) -> None:
    request = replace(GOOD, num_inference_steps=4, guidance_interval=interval)
    assert [step for step in range(4) if request.guided(step)] == guided
    assert not any(replace(request, guidance_scale=1.0).guided(step) for step in range(4))


@pytest.mark.parametrize("name", ["reference_image_path", "audio_path", "kps_path"])
def test_no_input_is_written_over(name: str, tmp_path: Path) -> None:
    given, link = tmp_path / "given.mp4", tmp_path / "link.mp4"
    given.touch()
    link.symlink_to(given)
    for output in (given, link):
        with pytest.raises(UserError, match=f"--output_path {output}: it is --{name} as well"):
            replace(GOOD, output_path=output, **{name: given}).validate()
    replace(GOOD, output_path=tmp_path / "new.mp4", **{name: given}).validate()


def test_a_range_is_said_in_all_its_digits() -> None:
    with pytest.raises(UserError, match=r"--seed -1: must be from 0 to 18446744073709551615\.$"):
        replace(GOOD, seed=-1).validate()
