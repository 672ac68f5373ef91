"""Key points: time, coordinates, retargeting and drawing, against the oracle and by what they mean."""

import numpy as np
import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime import keypoints
from vexpress_trt.runtime.keypoints import (
    closest_pose_frame,
    crop_track,
    draw_keypoints,
    interpolate_track,
    resample_track,
    retarget,
    share_outside,
    upstream_pose_frame,
)

FACE = np.array([[200.0, 220.0], [310.0, 215.0], [255.0, 290.0]])


@pytest.mark.parametrize("source, target", [(20, 28), (28, 28), (7, 100), (1, 5)])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("float64", 1e-9)])
def test_interpolation_equals_torch(golden_dir, source, target, dtype, tolerance):
    golden = np.load(golden_dir / "helpers" / "torch_reference.npz")
    name = f"track_{dtype}_{source}_to_{target}"
    result = interpolate_track(golden[name + "_in"], target)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, golden[name + "_out"], rtol=0, atol=tolerance)


def test_interpolation_equals_the_oracle(shared_dir):
    golden = np.load(shared_dir / "golden" / "helpers" / "kps_interpolate.npz")
    for source in (100, 20, 28):
        result = interpolate_track(golden[f"in_{source}"], 28)
        np.testing.assert_allclose(result, golden[f"out_{source}_to_28"], rtol=0, atol=1e-4)


def test_interpolation_cuts_a_longer_track():
    track = np.arange(60.0).reshape(10, 3, 2)
    np.testing.assert_array_equal(interpolate_track(track, 4), track[:4])


def moving_nose(frames: int, dtype=np.float64) -> np.ndarray:
    """A face whose nose moves one pixel to the right per frame."""
    track = np.repeat(FACE[None], frames, axis=0)
    track[:, 2, 0] += np.arange(frames)
    return track.astype(dtype)


def test_a_track_with_a_rate_is_taken_by_time():
    track = moving_nose(50, np.float32)
    result = resample_track(track, 60, fps=30.0, track_fps=25.0)
    assert result.dtype == np.float32
    # Frame i of the clip lasts from i/30 to (i+1)/30 s; its middle in frames of the track:
    expected = FACE[2, 0] + np.clip((np.arange(60) + 0.5) * 25 / 30 - 0.5, 0, 49)
    np.testing.assert_allclose(result[:, 2, 0], expected, atol=1e-3)
    np.testing.assert_array_equal(resample_track(track, 30, fps=25.0, track_fps=25.0), track[:30])


def test_a_track_that_ends_early_holds_its_last_points():
    track = moving_nose(10)
    result = resample_track(track, 30, fps=30.0, track_fps=30.0)
    np.testing.assert_array_equal(result[:10], track)
    np.testing.assert_array_equal(result[10:], np.repeat(track[-1:], 20, axis=0))


@pytest.mark.parametrize("length", [1, 7, 20, 33])
def test_a_track_without_a_rate_spans_the_clip(length):
    track = moving_nose(20)
    result = resample_track(track, length, fps=30.0)
    assert result.shape == (length, 3, 2)
    # A linear movement stays linear and symmetric about the middle.
    np.testing.assert_allclose(result[:, 2, 0] + result[::-1, 2, 0], 2 * FACE[2, 0] + 19)


def test_points_move_with_the_crop_of_the_picture():
    # A 1000 x 500 picture shown squeezed into 512 x 512; its middle 500 x 500 becomes 256 x 256.
    points = np.array([[[128.0, 0.0], [384.0, 512.0], [256.0, 256.0]]])
    result = crop_track(points, (512, 512), (1000, 500), (250, 0, 500, 500), (256, 256))
    np.testing.assert_allclose(result, [[[0, 0], [256, 256], [128, 128]]])
    whole = crop_track(points, (512, 512), (1000, 500), (0, 0, 1000, 500), (256, 128))
    np.testing.assert_allclose(whole, points * (256 / 512, 128 / 512))
    assert crop_track(points.astype(np.float32), (512, 512), (8, 8), (0, 0, 8, 8), (8, 8)).dtype == np.float32


def test_share_outside():
    points = np.array([[[0.0, 0.0], [159.9, 95.9]], [[160.0, 5.0], [-0.1, 5.0]], [[5.0, 96.0], [np.nan, 5.0]]])
    assert share_outside(points, 160, 96) == pytest.approx(4 / 6)
    assert share_outside(points[:1], 160, 96) == 0


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("float64", 1e-9)])
@pytest.mark.parametrize("offset", [True, False])
def test_retarget_equals_the_oracle(golden_dir, dtype, tolerance, offset):
    golden = np.load(golden_dir / "helpers" / "retarget_kps.npz")
    result = retarget(golden[f"seq_{dtype}"], golden[f"ref_{dtype}"], offset=offset, upstream=True)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, golden[f"out_{dtype}_offset{offset}"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("case, reference", [("2", "ref_float64"), ("3", "ref3")])
@pytest.mark.parametrize("offset", [True, False])
def test_retarget_repeats_upstreams_choice_of_the_frame(golden_dir, case, reference, offset):
    golden = np.load(golden_dir / "helpers" / "retarget_kps.npz")
    track, face = golden[f"seq{case}"], golden[reference]
    result = retarget(track, face, offset=offset, upstream=True)
    np.testing.assert_allclose(result, golden[f"out{case}_offset{offset}"], rtol=0, atol=1e-9)
    assert upstream_pose_frame(track, face) == golden[f"seq{case}_selected_index"]
    assert closest_pose_frame(track, face) == golden[f"seq{case}_true_argmin_index"]
    assert upstream_pose_frame(track, face) != closest_pose_frame(track, face)
    ours = retarget(track, face, offset=offset)
    assert np.abs(ours - result).max() > 1e-3


def test_retarget_onto_the_own_face_changes_nothing():
    track = moving_nose(5)
    np.testing.assert_allclose(retarget(track, track[0], offset=False), track)


def test_a_face_without_size_is_refused_and_a_bad_frame_is_not_chosen():
    track = moving_nose(5)
    with pytest.raises(UserError, match="no size"):
        retarget(track, np.array([[5.0, 5.0], [5.0, 5.0], [5.0, 9.0]]), offset=True)
    with pytest.raises(UserError, match="no size"):
        retarget(track, np.array([[0.0, 0.0], [4.0, 0.0], [2.0, 0.0]]), offset=True)
    track[0, 2] = track[0, 1]  # the nose on the right eye: no ratio
    assert closest_pose_frame(track, FACE) == 1


@pytest.mark.parametrize(
    "points, images, width, height",
    [("kps_512", "images_512", 512, 512), ("kps_128", "images_128", 128, 128), ("kps_128", "images_96x160", 160, 96)],
)
def test_drawing_is_the_oracles_bit_for_bit(golden_dir, points, images, width, height):
    golden = np.load(golden_dir / "helpers" / "draw_kps.npz")
    for face, image in zip(golden[points], golden[images], strict=True):
        np.testing.assert_array_equal(draw_keypoints(face, width, height), image)


def test_drawing_real_points_is_the_oracles_bit_for_bit(shared_dir):
    golden = np.load(shared_dir / "golden" / "helpers" / "draw_kps.npz")
    for face, image in zip(golden["kps_512"], golden["images_512"], strict=True):
        np.testing.assert_array_equal(draw_keypoints(face, 512, 512), image)
    pipeline = np.load(shared_dir / "golden" / "pipeline" / "shared_inputs.npz")
    for face, image in zip(pipeline["kps_sequence"], pipeline["kps_images"], strict=True):
        np.testing.assert_array_equal(draw_keypoints(face, 128, 128), image)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e9, -1e30])
def test_points_that_cannot_be_drawn_are_left_out_with_their_limb(value):
    face = FACE / 4
    face[0] = value
    image = draw_keypoints(face, 128, 128)
    assert image[..., 0].max() == 0
    assert image[..., 1].max() == 255
    face[2] = value
    lonely = draw_keypoints(face, 128, 128)
    assert set(np.unique(lonely)) == {0, 255}
    assert lonely[..., 2].max() == 0


def test_a_limb_to_a_point_just_off_the_canvas_is_still_drawn():
    face = np.array([[-100.0, 64.0], [5000.0, 64.0], [64.0, 64.0]])
    image = draw_keypoints(face, 128, 128)
    assert image[64, 1, 0] == 153
    assert image[64, 126, 1] == 153
    assert keypoints.draw_keypoints(face + 20000, 128, 128).max() == 0
