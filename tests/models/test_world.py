"""The drawn world: faces are a function of their numbers, and are where their key points are."""

import numpy as np
import pytest

from vexpress_trt.models.mini.clips import plan_clip
from vexpress_trt.models.mini.features import Mouth
from vexpress_trt.models.mini.identity import FIRST_HELD_OUT, draw_identity
from vexpress_trt.models.mini.measure import keypoint_errors, mouth_box, mouth_opening
from vexpress_trt.models.mini.pose import HeadFrame, blink_path, head_frame, head_path, keypoints_of
from vexpress_trt.models.mini.world import render

SHUT = Mouth(0.0, 0.5)


def test_a_frame_depends_on_its_arguments_only():
    track = head_path(3, 2, 25)
    first = render(draw_identity(3), track[0], Mouth(0.4, 0.6), 0.2)
    render(draw_identity(4), track[1], Mouth(0.9, 0.1), 0.0)
    again = render(draw_identity(3), track[0], Mouth(0.4, 0.6), 0.2)
    assert first.shape == (128, 128, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)


def test_numbers_of_any_type_draw_the_same_mouth():
    points = head_path(5, 1, 25)[0]
    plain = render(draw_identity(5), points, Mouth(0.7, 0.3), 0.5)
    numpy = render(
        draw_identity(5), points.astype(np.float64), Mouth(np.float64(0.7), np.float32(0.3)), np.float64(0.5)
    )
    assert np.abs(plain.astype(int) - numpy).max() <= 1


def test_seeds_give_different_people():
    points = head_path(0, 1, 25)[0]
    frames = [render(draw_identity(seed), points, SHUT).astype(int) for seed in range(6)]
    for i, first in enumerate(frames):
        assert all(np.abs(first - other).mean() > 5 for other in frames[i + 1 :])


def test_key_points_and_head_coordinates_are_inverse():
    frame = HeadFrame(np.array([60.0, 52.0]), 23.0, np.array([np.cos(0.2), np.sin(0.2)]), np.array([0.1, -0.04]))
    back = head_frame(keypoints_of(frame))
    np.testing.assert_allclose(back.origin, frame.origin, atol=1e-4)
    np.testing.assert_allclose(back.right, frame.right, atol=1e-4)
    np.testing.assert_allclose(back.turn, frame.turn, atol=1e-4)
    assert back.unit == pytest.approx(frame.unit, abs=1e-4)


def test_eyes_that_coincide_are_refused():
    with pytest.raises(ValueError, match="0.00 pixels apart"):
        render(draw_identity(0), np.array([[60.0, 50.0], [60.0, 50.0], [60.0, 70.0]]), SHUT)


def test_the_head_is_where_its_key_points_are():
    errors = []
    for seed in range(12):
        who, (points, other) = draw_identity(seed), head_path(seed, 60, 25)[[0, 59]]
        errors.append(keypoint_errors(render(who, points, SHUT), points, render(who, other, SHUT), other))
    assert np.median(errors) < 0.015  # of the face's width


def test_a_displaced_head_is_noticed():
    who, points = draw_identity(2), head_path(2, 1, 25)[0]
    frame = render(who, points, SHUT)
    moved = render(who, points + np.array([3.0, 0.0], np.float32), SHUT)
    error = keypoint_errors(moved, points, frame, points)
    np.testing.assert_allclose(error, 3 / (2.3 * head_frame(points).unit), rtol=0.15)


def test_heads_move_smoothly_and_stay_in_the_picture():
    for seed in range(20):
        track = head_path(seed, 100, 25)
        assert np.abs(np.diff(track, axis=0)).max() < 4
        assert track.min() > 20
        assert track.max() < 108


def test_blinks_are_short_and_rare():
    lids = np.concatenate([blink_path(seed, 250, 25) for seed in range(20)])
    assert lids.max() == 1
    assert 0.01 < (lids > 0.5).mean() < 0.15


def test_a_blink_hides_the_eyes_only():
    who, points = draw_identity(7), head_path(7, 1, 25)[0]
    changed = np.abs(render(who, points, SHUT, 0.0).astype(int) - render(who, points, SHUT, 1.0)).max(axis=2) > 4
    rows = np.nonzero(changed)[0]
    assert changed.any()
    assert abs(rows.mean() - points[:2, 1].mean()) < 4
    assert not changed[mouth_box(points)].any()


def test_the_mouth_estimator_reads_true_openings():
    rng = np.random.default_rng(0)
    true, seen = [], []
    for seed in range(30):
        for points in head_path(seed, 200, 25)[::20]:
            true.append(rng.uniform())
            mouth = Mouth(true[-1], rng.uniform())
            seen.append(mouth_opening(render(draw_identity(seed), points, mouth), points))
    assert np.corrcoef(true, seen)[0, 1] >= 0.99
    assert np.polyfit(true, seen, 1) == pytest.approx([1, 0], abs=0.12)


def test_a_shut_mouth_is_read_as_shut():
    for seed in range(20):
        points = head_path(seed, 1, 25)[0]
        assert mouth_opening(render(draw_identity(seed), points, SHUT), points) < 0.06


def test_training_and_held_out_clips_share_no_person():
    speech = [{"opening": np.linspace(0, 1, 60), "width": np.full(60, 0.5)}]
    training = {plan_clip(number, speech, 24, held_out=False).who.seed for number in range(50)}
    held_out = {plan_clip(number, speech, 24, held_out=True).who.seed for number in range(50)}
    assert len(training) == len(held_out) == 50
    assert max(training) < FIRST_HELD_OUT <= min(held_out)


def test_a_clip_speaks_what_its_utterance_says():
    speech = [{"opening": np.linspace(0, 1, 60), "width": np.linspace(1, 0, 60)}]
    clip = plan_clip(0, speech, 24, held_out=False)
    expected = speech[0]["opening"][clip.start : clip.start + 24]
    np.testing.assert_allclose([mouth.opening for mouth in clip.mouths], expected)
