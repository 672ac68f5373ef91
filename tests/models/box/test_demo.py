"""`vexpress demo` needs nothing but the lean install: a video, a strip of it, and what it is worth."""

import json
import subprocess
import sys
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from vexpress_trt import cli
from vexpress_trt.models.box import box
from vexpress_trt.models.box.demo import mouth_correlation
from vexpress_trt.models.box.held_out import DEMO, DEMO_FRAMES, HeldOutClip

NOT_LEAN = "torch diffusers transformers safetensors onnxscript huggingface_hub scipy matplotlib".split()
LEAN_DEMO = f"""
import sys
for name in {NOT_LEAN}:
    sys.modules[name] = None  # as if it were not installed
from vexpress_trt import cli
sys.exit(cli.main(["demo", *sys.argv[1:]]))
"""


def _lean_demo(*flags: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", LEAN_DEMO, *flags], capture_output=True, text=True, check=False)


def _check(result: dict, folder: Path) -> None:
    assert result["summary"]["frames"] == DEMO_FRAMES
    with av.open(str(folder / "demo.mp4")) as media:
        assert media.streams.video[0].frames == DEMO_FRAMES
        assert media.streams.audio[0].codec_context.name == "aac"
    assert Image.open(folder / "demo.png").size == (9 * 128, 128)
    assert -1 <= result["mouth_correlation"] <= 1


def test_any_bundle_without_torch(golden_bundle: Path, tmp_path: Path) -> None:
    flags = ["--preset", "realtime", "--json", "--quiet", "--backend", "openvino"]
    done = _lean_demo("--output_path", str(tmp_path / "demo.mp4"), "--bundle", str(golden_bundle), *flags)
    assert done.returncode == 0, done.stderr
    _check(json.loads(done.stdout), tmp_path)


def test_the_model_in_the_box_talks_without_torch(tmp_path: Path) -> None:
    assert box.is_shipped()
    done = _lean_demo("--output_path", str(tmp_path / "demo.mp4"), "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    _check(result, tmp_path)
    assert not result["summary"]["random_weights"]
    assert result["mouth_correlation"] > 0.8
    assert result["summary"]["total_seconds"] < 90


def test_generate_takes_the_model_in_the_box_where_no_bundle_is_named(tmp_path: Path, capsys) -> None:
    from vexpress_trt.models.box.clip_request import clip_request

    request = clip_request(HeldOutClip(0), tmp_path)
    names = ("reference_image_path", "audio_path", "kps_path")
    flags = [word for name in names for word in (f"--{name}", str(getattr(request, name)))]
    output = ["--output_path", str(tmp_path / "out.mp4"), "--num_inference_steps", "2", "--fps", "25"]
    assert cli.main(["generate", *flags, *output, "--quiet"]) == 0  # a warning is not progress
    said = capsys.readouterr().err
    assert "the model in the box is taken" in said
    for flag in ("--fps 25", "--guidance_scale 2", "--reference_attention_weight 0.95", "--audio_attention_weight 3"):
        assert flag in said


def test_without_a_model_both_commands_say_what_to_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    monkeypatch.setattr(box, "is_shipped", lambda *folder: False)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--quiet"]) == 2
    assert "name a bundle with --bundle" in capsys.readouterr().err
    files = ["--reference_image_path", "a.png", "--audio_path", "a.wav", "--output_path", "a.mp4"]
    assert cli.main(["generate", *files]) == 2
    assert "--bundle is missing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_video_must_be_an_mp4(capsys) -> None:
    assert cli.main(["demo", "--output_path", "demo.png"]) == 2
    assert "let the name end in .mp4" in capsys.readouterr().err


def test_the_strips_place_is_checked_before_anything_is_generated(tmp_path: Path, capsys) -> None:
    (tmp_path / "demo.png").mkdir()
    assert cli.main(["demo", "--output_path", str(tmp_path / "demo.mp4"), "--quiet"]) == 2
    assert "demo.png: a folder of that name exists" in capsys.readouterr().err
    assert not (tmp_path / "demo.mp4").exists()


@pytest.mark.parametrize("size", [128, 256])
def test_mouths_are_read_from_frames_of_any_size(size: int) -> None:
    clip = HeldOutClip(DEMO)
    frames = np.stack([cv2.resize(frame, (size, size), interpolation=cv2.INTER_LINEAR) for frame in clip.truth])
    assert mouth_correlation(clip, frames) > 0.98
    assert mouth_correlation(clip, np.zeros_like(frames)) == 0


def test_the_strip_shows_the_portrait_first_and_the_last_frame_last(tmp_path: Path) -> None:
    from vexpress_trt.models.box.demo import write_strip

    frames = np.arange(20, dtype=np.uint8).repeat(16 * 16 * 3).reshape(20, 16, 16, 3)
    write_strip(tmp_path / "strip.png", np.full((16, 16, 3), 200, np.uint8), frames)
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    assert strip.shape == (16, 9 * 16, 3)
    assert [int(strip[0, 16 * tile, 0]) for tile in (0, 1, 8)] == [200, 0, 19]
