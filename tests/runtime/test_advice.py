"""Advice: every line with an input that asks for it and one that does not."""

import importlib.resources

import cv2
import numpy as np
import pytest
from PIL import Image

from vexpress_trt.runtime import advice
from vexpress_trt.runtime.audio_input import AudioQuality, decode_audio, measure
from vexpress_trt.runtime.faces.face import Face
from vexpress_trt.runtime.faces.mtcnn import MtcnnDetector
from vexpress_trt.runtime.portrait import load_portrait
from vexpress_trt.runtime.tracks import load_track

GIB = 2**30
FRONTAL = np.array([[190.0, 210.0], [310.0, 210.0], [250.0, 275.0]], np.float32)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma)


def face(x: float, y: float, side: float) -> Face:
    points = np.array([[x - side / 4, y - side / 8], [x + side / 4, y - side / 8], [x, y + side / 4]], np.float32)
    return Face(points, np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2], np.float32), 1.0)


def rotated(points: np.ndarray, degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return ((points - points[2]) @ turn + points[2]).astype(np.float32)


def track(points: np.ndarray) -> np.ndarray:
    """A head that hardly moves about these points, float32 [20, 3, 2]."""
    return (points + np.random.default_rng(0).normal(0, 1, (20, 3, 2))).astype(np.float32)


@pytest.fixture(scope="module")
def demo_portrait() -> np.ndarray:
    with importlib.resources.as_file(
        importlib.resources.files("vexpress_trt.models") / "demo" / "portrait.jpg"
    ) as path:
        return load_portrait(path)


@pytest.fixture(scope="module")
def detector() -> MtcnnDetector:
    return MtcnnDetector()


def test_blurred_portrait(demo_portrait):
    assert advice.blurred_portrait(demo_portrait) is None
    assert "blurred" in advice.blurred_portrait(blurred(demo_portrait, 3))


def test_sharpness_does_not_depend_on_size_or_contrast(demo_portrait):
    large = np.asarray(Image.fromarray(demo_portrait).resize((1536, 1536), Image.Resampling.LANCZOS))
    faint = (demo_portrait * 0.15 + 90).astype(np.uint8)
    for variant in (large, faint):
        assert advice.blurred_portrait(variant) is None
        assert advice.blurred_portrait(blurred(variant, 3 * len(variant) / 512))


def test_small_and_off_centre_face():
    assert advice.placed_face(face(256, 240, 280), 512, 512) is None
    assert "only 20% of the portrait" in advice.placed_face(face(256, 256, 102), 512, 512)
    assert "far from the portrait's middle" in advice.placed_face(face(130, 256, 240), 512, 512)
    assert advice.placed_face(face(500, 240, 280), 1000, 512) is None


def advice_on_place(image: np.ndarray, detector: MtcnnDetector) -> str | None:
    (found,) = detector.detect(image)
    return advice.placed_face(found, image.shape[1], image.shape[0])


def test_a_real_face_framed_well_and_badly(demo_portrait, detector):
    """The demo's head cropped to twice its size, the same far away, and the same at the edge."""
    (found,) = detector.detect(demo_portrait)
    reach = int(found.size)
    x, y = found.points.mean(axis=0).astype(int)
    padded = np.pad(demo_portrait, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    close = padded[y : y + 2 * reach, x : x + 2 * reach]
    assert advice_on_place(close, detector) is None
    far = np.pad(close, ((3 * reach, 3 * reach), (3 * reach, 3 * reach), (0, 0)), mode="edge")
    assert "of the portrait: crop closer" in advice_on_place(far, detector)
    aside = np.pad(close, ((0, 0), (reach * 3 // 2, 0), (0, 0)), mode="edge")[: 2 * reach]
    assert "far from the portrait's middle" in advice_on_place(aside, detector)


@pytest.mark.parametrize(
    ("level", "clipped", "noise", "words"),
    [
        (-20.0, 0.0, 35.0, None),
        (-45.0, 0.0, 35.0, "quiet (-45 dB)"),
        (-20.0, 0.05, 35.0, "5.0% of the audio is clipped"),
        (-20.0, 0.0, 9.0, "only 9 dB above the noise"),
    ],
)
def test_quiet_clipped_and_noisy_audio(level, clipped, noise, words):
    line = advice.doubtful_audio(AudioQuality(level, clipped, noise))
    assert line is None if words is None else words in line


def test_spoiled_recordings_are_noticed(speech):
    """From samples to the line, with the hint where a stronger audio weight helps."""
    samples, random = speech[0], np.random.default_rng(0)
    assert advice.doubtful_audio(measure(samples)) is None
    hint = "--audio_attention_weight 1.5 to 3.0"
    assert hint in advice.doubtful_audio(measure(samples * 0.01))
    assert hint in advice.doubtful_audio(measure(samples + 0.05 * random.standard_normal(len(samples))))
    assert "clipped" in advice.doubtful_audio(measure(np.clip(samples * 20, -1, 1)))


def test_pose_far_from_the_portraits_names_offset_retarget():
    turned = FRONTAL + np.array([[0, 0], [0, 0], [35, 0]])
    for strategy in ("no_retarget", "naive_retarget"):
        assert advice.distant_pose(track(FRONTAL), FRONTAL, strategy) is None
        for pose in (rotated(FRONTAL, 20), turned):
            assert "offset_retarget" in advice.distant_pose(track(pose), FRONTAL, strategy)
    for strategy in ("offset_retarget", "fix_face"):
        assert advice.distant_pose(track(turned), FRONTAL, strategy) is None


def test_a_tilt_counts_the_short_way_round():
    """Eyes that lie along the axis where angles wrap are near each other."""
    flipped = FRONTAL[[1, 0, 2]]
    assert advice.distant_pose(track(rotated(flipped, 3)), rotated(flipped, -3), "no_retarget") is None


def test_place_and_size_far_from_the_portraits_name_naive_retarget():
    for moved in (FRONTAL + 100, (FRONTAL - FRONTAL[2]) * 1.5 + FRONTAL[2]):
        assert "naive_retarget" in advice.distant_pose(track(moved), FRONTAL, "no_retarget")
        assert advice.distant_pose(track(moved), FRONTAL, "naive_retarget") is None
    assert advice.distant_pose(track(FRONTAL + 10), FRONTAL, "no_retarget") is None


def test_a_track_that_is_not_followed():
    assert advice.unused_track("fix_face", track=True) == (
        "--kps_path is not used: --retarget_strategy fix_face keeps the portrait's pose"
    )
    assert advice.unused_track("fix_face", track=False) is None
    assert advice.unused_track("offset_retarget", track=True) is None


def test_short_memory():
    assert advice.short_memory(4 * GIB, 8 * GIB, save_gpu_memory=False) is None
    assert "needs about 10.0 GiB and 8.0 GiB are free: --save_gpu_memory" in advice.short_memory(
        10 * GIB, 8 * GIB, save_gpu_memory=False
    )
    assert "smaller size" in advice.short_memory(10 * GIB, 8 * GIB, save_gpu_memory=True)


def test_long_run():
    assert advice.long_run(300) is None
    assert "about 20 min: fewer --num_inference_steps (--preset fast: 5) or a smaller size" in advice.long_run(1200)
    assert "about 2.5 h" in advice.long_run(9000)


def test_unusual_weights():
    assert advice.unusual_weights(1.0, 1.0) is None
    assert advice.unusual_weights(0.9, 3.0) is None
    assert "--reference_attention_weight 0.5 is outside the usual 0.9 to 1" in advice.unusual_weights(0.5, 1.0)
    assert "--audio_attention_weight 3.5 is outside the usual 1 to 3" in advice.unusual_weights(1.0, 3.5)


def test_unusual_fps():
    for fps in (24, 25, 30):
        assert advice.unusual_fps(fps) is None
    for fps in (15, 60):
        assert f"--fps {fps} is outside the usual 24 to 30" in advice.unusual_fps(fps)


@pytest.mark.parametrize(
    ("gpu_id", "device", "said"),
    [
        (0, "auto", None),
        (1, "auto", "GPU 1 is not used, this clip runs on the CPU: --device cuda runs it there"),
        (2, "cpu", "GPU 2 is not used, this clip runs on the CPU"),
    ],
)
def test_a_gpu_that_is_chosen_by_number_and_not_used(gpu_id, device, said):
    assert advice.unused_gpu(gpu_id, device) == said


def test_long_audio():
    assert advice.long_audio(60.0, upstream=True, save_gpu_memory=False) is None
    assert "--save_gpu_memory" in advice.long_audio(61.0, upstream=True, save_gpu_memory=False)
    assert advice.long_audio(61.0, upstream=True, save_gpu_memory=True) is None
    assert advice.long_audio(6100.0, upstream=False, save_gpu_memory=False) is None


def test_good_real_portraits_and_recordings_stay_silent(shared_dir):
    for folder in ("10", "AOC", "tys"):
        sample = shared_dir / "samples" / folder
        assert advice.blurred_portrait(load_portrait(sample / "ref.jpg")) is None
        assert advice.doubtful_audio(measure(decode_audio(sample / "aud.mp3").samples)) is None
    long = decode_audio(shared_dir / "samples" / "AOC" / "v_exprss_intro_chattts.mp3")
    assert advice.doubtful_audio(measure(long.samples)) is None


def test_good_real_tracks_stay_silent_and_a_foreign_one_does_not(shared_dir, detector):
    """Each person's own track, and one person's portrait with the turned head of another."""
    samples = shared_dir / "samples"
    references, tracks = {}, {}
    for name in ("10", "AOC", "tys"):
        image = load_portrait(samples / name / "ref.jpg")
        assert image.shape == (512, 512, 3)  # so that the track's pixels are the portrait's
        assert advice_on_place(image, detector) is None
        references[name] = detector.detect(image)[0].points
        tracks[name] = load_track(samples / name / "kps.pth").points
        for strategy in ("no_retarget", "naive_retarget", "offset_retarget"):
            assert advice.distant_pose(tracks[name], references[name], strategy) is None
    assert "offset_retarget" in advice.distant_pose(tracks["10"], references["tys"], "no_retarget")


def test_blurred_real_portraits_do_not(shared_dir):
    for folder in ("10", "AOC", "tys"):
        portrait = load_portrait(shared_dir / "samples" / folder / "ref.jpg")
        assert advice.blurred_portrait(blurred(portrait, 2.5))
