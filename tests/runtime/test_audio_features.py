"""Audio rows per frame: the oracle's stretched ones, and by time for the default mode."""

from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.runtime.audio_features import AudioFeatures


@pytest.mark.parametrize(
    ("length", "windows"), [("video_length", "windows_pad2"), ("video_length_b", "windows_b_pad2")]
)
def test_the_oracles_windows(shared_dir: Path, length: str, windows: str) -> None:
    golden = np.load(shared_dir / "golden" / "helpers" / "audio_windows.npz")
    frames = int(golden[length])
    features = AudioFeatures.stretched(golden["last_hidden_state"].shape[1], frames, pad=2)
    rows = features.windows(0, frames, golden["last_hidden_state"][0])
    np.testing.assert_allclose(rows, golden[windows], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("name", "frames"), [("hidden", 8), ("hidden", 28), ("hidden", 36), ("long_hidden", 928)])
def test_stretched_rows_equal_torchs_interpolation(golden_dir: Path, name: str, frames: int) -> None:
    golden = np.load(golden_dir / "helpers" / "torch_reference.npz")
    rows = golden[f"{name}_to_{2 * frames}"]
    windows = AudioFeatures.stretched(len(golden[name]), frames, pad=0).windows(0, frames, golden[name])
    np.testing.assert_allclose(windows.reshape(rows.shape), rows, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pad", [0, 1, 2, 3])
def test_windows_in_parts_equal_the_whole(pad: int) -> None:
    hidden = np.random.default_rng(1).normal(size=(37, 5)).astype(np.float32)
    features = AudioFeatures.stretched(len(hidden), 20, pad)
    whole = features.windows(0, 20, hidden)
    assert whole.shape == (20, 2 * (2 * pad + 1), 5)
    parts = []
    for start, stop in [(0, 7), (7, 20)]:
        first, last = features.states(start, stop)
        assert last - first < len(hidden)
        parts.append(features.windows(start, stop, hidden[first:last], first))
    assert (np.concatenate(parts) == whole).all()


def test_neighbours_beyond_the_clip_are_zero_rows() -> None:
    features = AudioFeatures.stretched(50, 25, pad=2)
    windows = features.windows(0, 25, np.ones((50, 3), np.float32))
    assert (windows[0, :4] == 0).all()
    assert (windows[0, 4:] == 1).all()
    assert (windows[24, :6] == 1).all()
    assert (windows[24, 6:] == 0).all()


@pytest.mark.parametrize("fps", [24.0, 25.0, 30.0])
def test_timed_rows_stand_where_time_says(fps: float) -> None:
    rate, seconds = 50.0, 4.0
    times = (np.arange(int(rate * seconds)) + 0.5) / rate
    features = AudioFeatures.timed(len(times), seconds, fps, rate, pad=0)
    rows = features.windows(0, round(seconds * fps), times[:, None].astype(np.float32)).reshape(-1)
    expected = (np.arange(len(rows)) + 0.5) / (2 * fps)
    inside = (expected > times[0]) & (expected < times[-1])
    np.testing.assert_allclose(rows[inside], expected[inside], atol=1e-4)


def test_timed_rows_do_not_depend_on_how_long_the_clip_goes_on() -> None:
    hidden = np.random.default_rng(2).normal(size=(500, 4)).astype(np.float32)
    short = AudioFeatures.timed(200, 4.0, 30.0, 50.0, pad=2).windows(0, 100, hidden[:200])
    long = AudioFeatures.timed(500, 10.0, 30.0, 50.0, pad=2).windows(0, 100, hidden)
    assert (short == long).all()


def test_timed_rows_behind_the_audio_are_zero() -> None:
    features = AudioFeatures.timed(50, 1.0, 30.0, 50.0, pad=0)
    windows = features.windows(0, 40, np.ones((50, 2), np.float32))
    assert (windows[:30] == 1).all()
    assert (windows[30:] == 0).all()


def test_timed_rows_are_as_fine_hours_into_a_clip() -> None:
    seconds, rate = 7200.0, 50.0
    steps = np.tile(np.array([0.0, 1.0], np.float32), int(seconds * rate / 2))[:, None]
    features = AudioFeatures.timed(len(steps), seconds, 24.0, rate, pad=0)
    # 24 frames/s and 50 states/s meet again every second, so every second has the same rows.
    late = int(7100 * 24)
    rows = features.windows(late, late + 24, steps)
    np.testing.assert_allclose(rows, features.windows(24, 48, steps), rtol=0, atol=1e-5)


def test_frames_behind_the_audio_see_no_state() -> None:
    assert AudioFeatures.timed(50, 1.0, 30.0, 50.0, pad=0).states(30, 40) == (0, 0)
