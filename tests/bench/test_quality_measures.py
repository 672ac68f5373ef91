"""Each measure of a clip says what its name says: best for the truth, worse for what is worse."""

import cv2
import numpy as np
import pytest

from vexpress_trt.bench.quality_measures import (
    LAGS,
    colour_error,
    correlation,
    correlation_by_lag,
    gradient_distance,
    loudness,
    mean_ssim,
)
from vexpress_trt.bench.quality_score import score
from vexpress_trt.models.box.held_out import held_out_clips
from vexpress_trt.models.mini.measure import mean_mouth_psnr, mean_psnr, mouth_openings
from vexpress_trt.models.mini.world import render


@pytest.fixture(scope="module")
def clip():
    return held_out_clips(1)[0]


def _blurred(frames: np.ndarray, size: int) -> np.ndarray:
    return np.stack([cv2.blur(frame, (size, size)) for frame in frames])


def test_the_truth_is_perfect(clip) -> None:
    found = score([clip], [clip.truth])
    assert found.mouth_correlation == found.mouth_correlation_worst == pytest.approx(1)
    assert (found.best_lag_frames, found.flicker_ratio) == (0, pytest.approx(1))
    assert found.ssim == pytest.approx(1) and found.gradient_distance == pytest.approx(0, abs=1e-6)
    assert found.colour_error == 0 and found.psnr_db > 100
    assert found.keypoint_error < 0.02
    assert found.audio_correlation > 0.7


def test_blur_costs_likeness_in_every_measure(clip) -> None:
    little, much = (_blurred(clip.truth[:6], size) for size in (2, 5))
    truth, track = clip.truth[:6], clip.track[:6]
    assert mean_psnr(little, truth) > mean_psnr(much, truth)
    assert mean_mouth_psnr(little, truth, track) > mean_mouth_psnr(much, truth, track)
    assert 1 > mean_ssim(little, truth) > mean_ssim(much, truth)
    assert 0 < gradient_distance(little, truth) < gradient_distance(much, truth)


def test_another_persons_colours_are_seen(clip) -> None:
    other = held_out_clips(4)[3]  # dark hair and skin, not fair
    drawn = np.stack([render(other.who, points, _shut()) for points in clip.track[:3]])
    assert colour_error(drawn, clip.truth[:3], clip.track[:3]) > 10


def test_a_late_mouth_has_a_positive_lag(clip) -> None:
    opening = mouth_openings(clip.truth, clip.track)
    for lag in (-3, 0, 2):
        found = correlation_by_lag(opening, np.roll(opening, lag))
        assert LAGS[int(np.argmax(found))] == lag
        assert found.max() == pytest.approx(1)


def test_a_mouth_that_does_not_move_follows_nothing() -> None:
    assert correlation(np.arange(5.0), np.ones(5)) == 0


def test_loudness_follows_the_level_of_each_frame() -> None:
    times = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 300 * times) * np.where(times < 0.5, 1.0, 0.0)
    level = loudness(tone.astype(np.float32), 25)
    assert level[:10].min() > 0.9 and level[15:].max() == 0
    assert loudness((0.01 * tone).astype(np.float32), 25) == pytest.approx(level)


def _shut():
    from vexpress_trt.models.mini.features import Mouth

    return Mouth(0.0, 0.5)
