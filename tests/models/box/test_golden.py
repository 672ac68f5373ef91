"""One clip of the model in the box, whole path, on every backend and in every type that works here.

A floor in dB against the reference frames (onnxruntime, FP32), and one against the truth, which no reference can hide.
"""

import numpy as np
import pytest

from vexpress_trt.engines.selection import available_backends
from vexpress_trt.models.box.box import is_shipped, shipped_bundle
from vexpress_trt.models.box.golden import CLIP, GOLDEN, SHOWN, golden_frames, read_golden
from vexpress_trt.models.mini.measure import mouth_opening, psnr

USABLE = {status.name for status in available_backends() if status.usable}
FLOORS = {
    ("onnxruntime", "fp32"): 50.0,
    ("openvino", "fp32"): 45.0,
    ("torch", "fp32"): 45.0,
    ("openvino", "bf16"): 30.0,
    ("torch", "bf16"): 30.0,
}
TRUTH_FLOOR = 24.0
OPENING_ERROR = 0.3  # of a mouth that opens by 1


def _openings(frames: np.ndarray) -> np.ndarray:
    return np.array([mouth_opening(*pair) for pair in zip(frames, CLIP.track[SHOWN], strict=True)])


def test_the_box_is_part_of_the_repository() -> None:
    assert is_shipped() and GOLDEN.is_file()


@pytest.mark.parametrize(("backend", "dtype"), FLOORS)
def test_frames_stay_what_they_were(backend: str, dtype: str) -> None:
    if backend not in USABLE:
        pytest.skip(f"{backend} cannot run here")
    frames = golden_frames(shipped_bundle(), backend=backend, dtype=dtype)
    assert frames.shape == read_golden().shape
    assert psnr(frames, read_golden()) > FLOORS[backend, dtype]
    assert np.mean([psnr(*pair) for pair in zip(frames, CLIP.truth[SHOWN], strict=True)]) > TRUTH_FLOOR
    assert np.abs(_openings(frames) - _openings(CLIP.truth[SHOWN])).max() < OPENING_ERROR


def test_more_windows_at_once_change_rounding_only() -> None:
    frames = golden_frames(shipped_bundle(), backend="onnxruntime", dtype="fp32", window_batch=2)
    assert psnr(frames, read_golden()) > FLOORS["onnxruntime", "fp32"]


def test_the_reference_is_small() -> None:
    assert GOLDEN.stat().st_size < 200_000
