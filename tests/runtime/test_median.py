"""The native 3x3x3 median: exact, on every kernel, at every edge."""

import itertools

import numpy as np
import pytest
from scipy.ndimage import median_filter

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime import _native, median
from vexpress_trt.runtime.median import filtered, median_clip

KERNELS = _native.median_kernels()


def expected(clip: np.ndarray) -> np.ndarray:
    return median_filter(clip, (3, 3, 3, 1), mode="mirror")


def random_clip(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        (1, 1, 9),
        (2, 9, 1),
        (3, 1, 1),
        (3, 2, 2),
        (4, 5, 7),
        (2, 33, 64),
        (3, 6, 511),
        (2, 5, 513),
        (2, 131, 70),
    ],
)
def test_equals_scipy_at_odd_sizes(kernel, shape):
    clip = random_clip(*shape)
    for threads in (1, 3):
        out = np.full_like(clip, 7)
        _native.median_3x3x3_clip(clip, out, threads, kernel)
        np.testing.assert_array_equal(out, expected(clip))


@pytest.mark.parametrize("kernel", KERNELS)
def test_ordering_network_is_right_for_every_input(kernel):
    """Zero-one principle: min/max networks that order all 0/1 inputs order all inputs.

    After the sort in time each of the nine pixels holds one of four 0/1 triples, which leaves 4^9 cases: one 3x3 tile
    each. The rows are filtered in pairs, so the tiles are shifted by a row for the second run.
    """
    ones = np.array(list(itertools.product(range(4), repeat=9)), dtype=np.uint8).reshape(512, 512, 3, 3)
    plane = ones.transpose(0, 2, 1, 3).reshape(1536, 1536)
    median_of_tile = (ones.sum((2, 3), dtype=int) >= 14).astype(np.uint8)
    for shift in (0, 1):
        shifted = np.roll(plane, shift, axis=0)
        frames = [np.repeat((shifted > t).astype(np.uint8)[:, :, None], 3, axis=2) for t in (2, 1, 0)]
        out = np.empty_like(frames[0])
        _native.median_3x3x3(*frames, out, 0, kernel)
        centres = np.roll(out, -shift, axis=0)[1::3, 1::3]
        rows = slice(0, 511)  # the last tile row wraps round when shifted
        for channel in range(3):
            np.testing.assert_array_equal(centres[rows, :, channel], median_of_tile[rows])


def test_bands_of_several_threads_meet_without_a_seam():
    clip = random_clip(1, 517, 401)
    np.testing.assert_array_equal(median_clip(clip, threads=4), expected(clip))


def test_golden_clip_filtered_after_truncation(golden_dir):
    """The original filters floats and truncates; truncating first must give the same bytes."""
    golden = np.load(golden_dir / "helpers" / "median_filter_3d.npz")
    clip = np.ascontiguousarray((golden["clip"] * 255).astype(np.uint8).transpose(1, 2, 3, 0))
    np.testing.assert_array_equal(median_clip(clip), golden["frames_uint8"])


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7])
def test_streaming_equals_the_whole_clip(length):
    clip = random_clip(length, 20, 30)
    streamed = list(filtered(iter(clip)))
    assert len(streamed) == length
    for t, frame in enumerate(streamed):
        np.testing.assert_array_equal(frame, median_clip(clip)[t])


def test_streaming_looks_one_frame_ahead_only():
    clip, taken = random_clip(6, 8, 8), []

    def source():
        for t, frame in enumerate(clip):
            taken.append(t)
            yield frame

    stream = filtered(source())
    next(stream)
    assert taken == [0, 1]
    next(stream)
    assert taken == [0, 1, 2]


def test_takes_frames_that_are_not_contiguous():
    clip = random_clip(3, 10, 24)[:, :, ::2]
    np.testing.assert_array_equal(median_clip(clip), expected(clip))


def test_refuses_wrong_shapes_types_and_filtering_in_place():
    frame = random_clip(1, 8, 8)[0]
    with pytest.raises(ValueError, match="differ in shape"):
        _native.median_3x3x3(frame, frame, frame[:4], np.empty_like(frame))
    with pytest.raises(ValueError, match="overlaps current"):
        _native.median_3x3x3(frame.copy(), frame, frame.copy(), frame)
    with pytest.raises(TypeError):
        _native.median_3x3x3(*[frame.astype(np.float32)] * 3, np.empty_like(frame))
    with pytest.raises(ValueError, match="no kernel 'sse9'"):
        _native.median_3x3x3(frame, frame, frame, np.empty_like(frame), 1, "sse9")
    with pytest.raises(ValueError, match="differ in shape"):
        list(filtered([frame, frame[:4]]))


def test_missing_extension_is_one_sentence(monkeypatch):
    import sys

    import vexpress_trt.runtime

    monkeypatch.delattr(vexpress_trt.runtime, "_native", raising=False)
    monkeypatch.setitem(sys.modules, "vexpress_trt.runtime._native", None)
    with pytest.raises(UserError, match="native module .* does not load .*reinstall"):
        median.median_clip(random_clip(1, 2, 2))
