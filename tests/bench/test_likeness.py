"""Pictures and tensors are compared as a whole."""

from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.bench import likeness
from vexpress_trt.bench.likeness import PictureLikeness, TensorLikeness, compare_frames, compare_tensors


def _frames(path: Path, values: np.ndarray) -> Path:
    path.write_bytes(values.astype(np.uint8).tobytes())
    return path


def test_psnr_is_that_of_all_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness, "_BLOCK", 16)  # several blocks
    one, other = np.full(100, 200), np.full(100, 200)
    other[[0, 99]] = 190, 255
    result = compare_frames(_frames(tmp_path / "a", one), _frames(tmp_path / "b", other))
    assert result.largest_difference == 55
    assert result.psnr_db == pytest.approx(10 * np.log10(255**2 / ((10**2 + 55**2) / 100)))


def test_identical_frames_have_no_psnr(tmp_path: Path) -> None:
    one = _frames(tmp_path / "a", np.arange(50))
    assert compare_frames(one, one) == PictureLikeness(None, 0)


def test_clips_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 and 4 bytes"):
        compare_frames(_frames(tmp_path / "a", np.arange(3)), _frames(tmp_path / "b", np.arange(4)))


def test_tensors_are_compared_by_signal_to_noise() -> None:
    reference = np.array([3.0, 4.0], np.float32)
    assert compare_tensors(reference, reference) == TensorLikeness(None, 0.0)
    result = compare_tensors(reference + np.array([0.5, 0.0], np.float32), reference)
    assert result.snr_db == pytest.approx(20.0)
    assert result.largest_difference == pytest.approx(0.5)
