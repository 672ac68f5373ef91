"""The kernels' arithmetic, run on the CPU, against NumPy and the latent store."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vexpress_trt.engines.manifest import SchedulerConfig
from vexpress_trt.runtime import _native
from vexpress_trt.runtime.cuda.host_kernels import HostKernels
from vexpress_trt.runtime.keypoints import draw_keypoints
from vexpress_trt.runtime.latent_store import LatentStore
from vexpress_trt.runtime.noise import frame_noise
from vexpress_trt.runtime.scheduler import SOLVERS, make_scheduler
from vexpress_trt.runtime.windows import WindowPlan, batches, live_windows

HOST = HostKernels()
EDGES = np.array(
    [0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65519.99, 65520, 65536, 1e30, 3.4e38, 2**-14, 2**-24, 2**-25, 1e-40]
    + [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 2**-14 - 2**-26, 3 * 2**-26, 2**-25 * (1 + 2**-20)],
    np.float32,
)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves, as uint16, of finite float32 values rounded to 8 bits of precision, ties to even."""
    with np.errstate(over="ignore"):
        exponent = np.floor(np.log2(np.abs(values.astype(np.float64)), where=values != 0, out=np.zeros(values.shape)))
        unit = 2.0 ** (np.maximum(exponent, -126) - 7)
        rounded = (np.rint(values / unit) * unit).astype(np.float32)
    return (np.copysign(rounded, values).view(np.uint32) >> 16).astype(np.uint16)


def gathered(ring: np.ndarray, table: np.ndarray, call: int, dtype: str) -> np.ndarray:
    (slots, size), frames = ring.shape, table.shape[1]
    out = np.full((frames, size), 7, np.float32 if dtype == "float32" else np.uint16)
    HOST.gather_latents(ring, table, np.array([call], np.int32), out, frames, size, slots, dtype)
    return out


@pytest.mark.parametrize("size", [1, 3, 4, 20, 22])
def test_latents_are_gathered_by_the_calls_row_of_the_table(size: int) -> None:
    random = np.random.default_rng(size)
    ring = random.normal(size=(5, size)).astype(np.float32)
    table = random.integers(0, 5, (4, 3), dtype=np.int32)
    for call in range(4):
        expected = ring[table[call]]
        np.testing.assert_array_equal(gathered(ring, table, call, "float32"), expected)
        halves = gathered(ring, table, call, "float16").view(np.float16)
        np.testing.assert_array_equal(halves, expected.astype(np.float16))
        np.testing.assert_array_equal(gathered(ring, table, call, "bfloat16"), to_bfloat16(expected))


def test_float16_is_rounded_as_numpy_rounds_it() -> None:
    random = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    every_half = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):
        between = np.nextafter(every_half, np.float32(0)), np.nextafter(every_half, np.float32(np.inf))
        ties = every_half + np.diff(every_half, append=np.float32(0)) / 2
    values = np.concatenate([EDGES, -EDGES, random, every_half, *between, ties]).astype(np.float32)[None]
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(np.float16)
    result = gathered(values, np.zeros((1, 1), np.int32), 0, "float16").view(np.float16)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(np.signbit(result)[~np.isnan(result)], np.signbit(expected)[~np.isnan(expected)])


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    random = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([EDGES, -EDGES, random])[None]
    result = gathered(values, np.zeros((1, 1), np.int32), 0, "bfloat16")
    wide = (result.astype(np.uint32) << 16).view(np.float32)
    finite = np.isfinite(values)
    np.testing.assert_array_equal(wide[~finite], values[~finite])
    np.testing.assert_array_equal(result[finite], to_bfloat16(values[finite]))


def test_a_slot_that_is_not_there_gives_nan() -> None:
    ring, table = np.ones((2, 4), np.float32), np.array([[1, -1, 2]], np.int32)
    assert np.isnan(gathered(ring, table, 0, "float32")).all(axis=1).tolist() == [False, True, True]


@pytest.mark.parametrize("row_bytes", [1, 3, 8, 16, 28, 48])
@pytest.mark.parametrize("shift", [0, 1, 4])
def test_rows_are_copied_as_they_are_however_they_are_aligned(row_bytes: int, shift: int) -> None:
    random = np.random.default_rng(row_bytes)
    ring = random.integers(0, 256, 6 * row_bytes + shift, dtype=np.uint8)[shift:]
    table = random.integers(0, 6, (3, 5), dtype=np.int32)
    for call in range(3):
        out = np.full((5, row_bytes), 9, np.uint8)
        HOST.gather_rows(ring, table, np.array([call], np.int32), out, 5, row_bytes)
        np.testing.assert_array_equal(out, ring.reshape(6, row_bytes)[table[call]])


def test_advance_counts_the_calls() -> None:
    cursor = np.array([4], np.int32)
    HOST.advance(cursor)
    assert cursor.tolist() == [5]


SHAPE = (4, 2, 3)
SIZE = 24


def predicted(latents: np.ndarray, window: int, step: int, halves: int) -> np.ndarray:
    """A stand-in for the network, [halves, F, SIZE]."""
    mixed = latents + np.roll(latents, 1, axis=0) * np.float32(0.3)
    conditional = np.sin(mixed * np.float32(1.7) + np.float32(window * 0.37 + step * 0.11))
    return np.stack([conditional * np.float32(0.5), conditional][2 - halves :]).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    window=st.integers(1, 7),
    windows=st.integers(1, 6),
    steps=st.integers(1, 4),
    halves=st.sampled_from([1, 2]),
    solver=st.sampled_from(SOLVERS),
    dtype=st.sampled_from(["float32", "float16"]),
    data=st.data(),
)
def test_a_schedule_by_tables_equals_the_latent_store(
    window: int, windows: int, steps: int, halves: int, solver: str, dtype: str, data: st.DataObject
) -> None:
    """Bit for bit, for every plan, with predictions of either precision."""
    plan = WindowPlan(window, data.draw(st.integers(0, window - 1)), windows)
    scheduler, guidance = make_scheduler(SchedulerConfig(), steps, solver), 2.5
    live = live_windows(plan, steps)
    store = LatentStore(
        plan, scheduler, lambda frame: frame_noise(1, frame, SHAPE), SHAPE, guidance_scale=guidance, live_windows=live
    )
    calls = [call for batch in batches(plan, steps, 1) for call in batch]
    slots, most = plan.live_frames(live), plan.reach + 1
    table, places, arrived = [], [], {}
    for of_window, step in calls:
        frames = range(*plan.span(of_window))
        table.append([frame % slots for frame in frames])
        for frame in frames:
            containing = plan.containing(frame)
            arrived.setdefault((frame, step), set()).add(of_window)
            complete = len(arrived[frame, step]) == len(containing)
            places.append((frame % slots, len(containing), of_window - containing.start, complete))
    table, places = np.array(table, np.int32), np.array(places, np.int32)
    weights = np.array([(guidance, *astuple(scheduler.weights(step))) for _, step in calls], np.float32)
    ring, pending = np.empty((slots, SIZE), np.float32), np.full((slots, most, SIZE), np.nan, np.float32)
    history = np.full((slots, SIZE), np.nan, np.float32) if scheduler.remembers else None
    cursor, status = np.zeros(1, np.int32), np.zeros(1, np.int32)

    known, latents, expected = set(), np.empty((window, *SHAPE), np.float32), np.empty((window, *SHAPE), np.float32)
    for of_window, step in calls:
        for frame in set(range(*plan.span(of_window))) - known:
            ring[frame % slots] = frame_noise(1, frame, SHAPE).ravel()
            known.add(frame)
        HOST.gather_latents(ring, table, cursor, latents, window, SIZE, slots, "float32")
        store.gather(of_window, step, expected)
        np.testing.assert_array_equal(latents, expected)
        prediction = predicted(latents.reshape(window, SIZE), of_window, step, halves).astype(dtype)
        HOST.step_window(
            prediction, dtype, halves, window, SIZE, ring, pending, most, history, places, weights, cursor, status
        )
        HOST.advance(cursor)
        assert store.scatter(of_window, step, prediction.astype(np.float32).reshape(halves, window, *SHAPE))
        for frame, latent in store.pop_final():
            np.testing.assert_array_equal(ring[frame % slots], latent.ravel())
    assert cursor[0] == len(calls)
    assert status[0] == 0


def stepped(prediction: np.ndarray, dtype: str, cursor: int, status: int, **replaced: object) -> int:
    """The status after one call of two frames of six values."""
    noted = np.array([status], np.int32)
    arrays = {
        "ring": np.zeros((2, 6), np.float32),
        "pending": np.zeros((2, 1, 6), np.float32),
        "places": np.tile(np.array([[0, 1, 0, 1], [1, 1, 0, 1]], np.int32), (4, 1)),
        "weights": np.ones((4, 6), np.float32),
    } | replaced
    HOST.step_window(
        prediction,
        dtype,
        len(prediction),
        2,
        6,
        arrays["ring"],
        arrays["pending"],
        1,
        None,
        arrays["places"],
        arrays["weights"],
        np.array([cursor], np.int32),
        noted,
    )
    return int(noted[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("halves", [1, 2])
def test_status_names_the_first_call_that_is_not_finite(value: float, halves: int) -> None:
    prediction = np.zeros((halves, 2, 6), np.float32)
    prediction[0, 1, 5] = value
    halved, upper = prediction.astype(np.float16), (prediction.view(np.uint32) >> 16).astype(np.uint16)
    for values, dtype in ((prediction, "float32"), (halved, "float16"), (upper, "bfloat16")):
        assert stepped(values, dtype, 2, 0) == 3
        assert stepped(values, dtype, 3, 3) == 3
        assert stepped(np.zeros_like(values), dtype, 3, 0) == 0


def test_what_does_not_fit_is_refused() -> None:
    prediction = np.zeros((1, 2, 6), np.float32)
    with pytest.raises(ValueError, match="no kernel for int8"):
        stepped(prediction, "int8", 0, 0)
    with pytest.raises(ValueError, match="neither one half nor two"):
        stepped(np.zeros((3, 2, 6), np.float32), "float32", 0, 0)
    with pytest.raises(ValueError, match="cursor is beyond"):
        stepped(prediction, "float32", 4, 0)
    with pytest.raises(ValueError, match="pending is smaller"):
        stepped(prediction, "float32", 0, 0, pending=np.zeros((2, 1, 5), np.float32))
    with pytest.raises(ValueError, match="slot or window"):
        stepped(prediction, "float32", 0, 0, places=np.tile(np.array([[0, 1, 1, 1]], np.int32), (8, 1)))
    with pytest.raises(ValueError, match="C-contiguous"):
        stepped(prediction, "float32", 0, 0, ring=np.zeros((2, 12), np.float32)[:, ::2])
    with pytest.raises(ValueError, match="row that ring does not have"):
        HOST.gather_rows(np.zeros(4, np.uint8), np.array([[4]], np.int32), np.zeros(1, np.int32), np.zeros(1), 1, 1)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 16_384, 16_387])
@pytest.mark.parametrize("seed, frame", [(42, 0), ((7 << 32) + 5, 3), (2**64 - 1, 2**31)])
def test_noise_is_the_documented_recipe_to_the_last_place(size: int, seed: int, frame: int) -> None:
    out = np.full(size + 1, 9, np.float32)
    HOST.noise(out, seed, frame, size)
    expected = frame_noise(seed, frame, (size,))
    assert (np.abs(out[:size] - expected) <= np.spacing(np.abs(expected))).all()
    assert out[size] == 9


@pytest.mark.parametrize("size", [1, 3, 16_384])
def test_latents_are_divided_as_numpy_divides(size: int) -> None:
    latents = np.random.default_rng(size).standard_normal(size, np.float32)
    out = np.full(size + 1, 9, np.float32)
    HOST.unscale(latents, 0.18215, out, size)
    np.testing.assert_array_equal(out[:size], latents / np.float32(0.18215))
    assert out[size] == 9


@pytest.mark.parametrize("height, width", [(1, 1), (1, 9), (9, 1), (2, 2), (5, 7), (33, 64)])
def test_median_equals_that_of_the_cpu(height: int, width: int) -> None:
    frames = np.random.default_rng(width).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    out, expected = np.empty_like(frames[0]), np.empty_like(frames[0])
    HOST.median(*frames, out, height, width)
    _native.median_3x3x3(*frames, expected)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_decoded_images_become_bytes_as_in_the_loop_on_the_cpu(dtype: type) -> None:
    pytest.importorskip("av")
    from vexpress_trt.runtime.generation import quantised

    decoded = np.random.default_rng(0).normal(0, 0.8, (3, 37, 21)).astype(dtype)
    decoded[0, :16, :16] = np.linspace(-1, 1, 256).reshape(16, 16)
    image = np.clip(decoded.transpose(1, 2, 0) * np.float32(0.5) + np.float32(0.5), 0.0, 1.0)
    out, status = np.empty((37, 21, 3), np.uint8), np.zeros(1, np.int32)
    HOST.to_rgb8(decoded, np.dtype(dtype).name, 37, 21, out, status=status)
    np.testing.assert_array_equal(out, next(quantised([image])))
    assert status[0] == 0
    for value in (np.nan, np.inf, -np.inf):
        decoded[1, 36, 20] = value
        status[0] = 0
        HOST.to_rgb8(decoded, np.dtype(dtype).name, 37, 21, out, status=status)
        assert status[0] == 1
        assert out[36, 20, 1] == (255 if value == np.inf else 0)


@pytest.mark.parametrize("height, width", [(2, 2), (1, 1), (5, 3), (64, 34)])
def test_nv12_is_bt601_in_limited_range_rounded_to_nearest(height: int, width: int) -> None:
    rgb = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    rows, columns = -(-height // 2), -(-width // 2)
    out = np.full(height * width + 2 * rows * columns + 1, 9, np.uint8)
    HOST.rgb_to_nv12(rgb, out, height, width)
    luma = 16 + rgb @ np.array([65.481, 128.553, 24.966]) / 255
    np.testing.assert_array_equal(out[: height * width].reshape(height, width), np.floor(luma + 0.5))
    mean = np.empty((rows, columns, 3))
    for row, column in np.ndindex(rows, columns):
        mean[row, column] = rgb[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(axis=(0, 1))
    chroma = 128 + mean @ np.array([[-37.797, -74.203, 112], [112, -93.786, -18.214]]).T / 255
    np.testing.assert_array_equal(out[height * width : -1].reshape(rows, columns, 2), np.floor(chroma + 0.5))
    assert out[-1] == 9


@pytest.mark.parametrize("grey", [0, 1, 128, 255])
def test_nv12_of_grey_has_no_colour(grey: int) -> None:
    out = np.empty(24, np.uint8)
    HOST.rgb_to_nv12(np.full((4, 4, 3), grey, np.uint8), out, 4, 4)
    assert (out[16:] == 128).all()
    assert {0: 16, 255: 235}.get(grey, out[0]) == out[0]


COORDINATES = st.one_of(
    st.integers(-40, 140), st.floats(-20, 120), st.floats(-400, 400), st.floats(-16_500, 16_500), st.just(np.nan)
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(COORDINATES, min_size=6, max_size=6),
    st.integers(1, 130),
    st.integers(1, 130),
    st.sampled_from(["float32", "float64"]),
)
def test_guide_images_are_opencvs_bit_for_bit(numbers: list[float], height: int, width: int, kind: str) -> None:
    points = np.array(numbers, kind).reshape(3, 2)
    expected, out = draw_keypoints(points, width, height), np.full((height, width, 3), 9, np.uint8)
    HOST.draw_keypoints(points, 1, height, width, out, "uint8", points_dtype=kind)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("turn", range(8))
def test_guide_images_of_faces_turned_by_whole_and_half_right_angles(turn: int) -> None:
    eye = np.array([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)])[turn]
    for length in range(40):
        points = np.array([eye * length + 50, -eye * length + 50, (50, 50)], np.float32)
        out = np.empty((100, 100, 3), np.uint8)
        HOST.draw_keypoints(points, 1, 100, 100, out, "uint8")
        np.testing.assert_array_equal(out, draw_keypoints(points, 100, 100))


def test_several_guide_images_as_the_guider_takes_them() -> None:
    points = np.random.default_rng(0).uniform(0, 60, (5, 3, 2)).astype(np.float32)
    images = np.stack([draw_keypoints(frame, 61, 47) for frame in points]).transpose(0, 3, 1, 2) / np.float32(255)
    single, half, brain = (np.empty((5, 3, 47, 61), kind) for kind in (np.float32, np.uint16, np.uint16))
    for out, dtype in ((single, "float32"), (half, "float16"), (brain, "bfloat16")):
        HOST.draw_keypoints(points, 5, 47, 61, out, dtype)
    np.testing.assert_array_equal(single, images)
    np.testing.assert_array_equal(half.view(np.float16), images.astype(np.float16))
    np.testing.assert_array_equal(brain, to_bfloat16(images))
