"""Every kernel on a GPU against its twin on the CPU, which the other tests hold against NumPy: the same bits."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.engines.driver import driver
from vexpress_trt.runtime.cuda.host_kernels import HostKernels
from vexpress_trt.runtime.cuda.kernels import Kernels

pytestmark = pytest.mark.gpu

HOST = HostKernels()
DTYPES = {"float32": np.float32, "float16": np.uint16, "bfloat16": np.uint16}
GUARD = 256  # bytes before and behind each array that must stay as they were
SIZES = [1, 3, 4, 5, 64, 255, 256, 257, 4096, 16_384, 16_386]
IMAGES = [(1, 1), (1, 9), (9, 1), (2, 2), (5, 7), (33, 64), (130, 257), (512, 512)]


class Gpu:
    """Device memory and a stream for one test."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.driver = driver(0)
        self._current = self.driver.current()
        self._current.__enter__()
        self.stream = self.driver.stream_create()
        self._memory: list[tuple[object, int, int, np.ndarray]] = []

    def close(self) -> None:
        self.synchronise()
        for base, *_ in self._memory:
            self.call("cuMemFree", base)
        self.driver.stream_destroy(self.stream)
        self._current.__exit__(None, None, None)

    def call(self, function: str, *arguments: object) -> object:
        return self.driver.call(function, *arguments)

    def synchronise(self) -> None:
        self.call("cuStreamSynchronize", self.stream)

    def upload(self, array: np.ndarray, shift: int = 0) -> int:
        """The address of a copy between guard bytes, `shift` values away from what is aligned to 256 bytes."""
        before = GUARD + shift * array.itemsize
        image = np.full(before + array.nbytes + GUARD, 0xA5, np.uint8)
        image[before : before + array.nbytes] = array.reshape(-1).view(np.uint8)
        base = self.call("cuMemAlloc", len(image))
        self.call("cuMemcpyHtoD", base, image.ctypes.data, len(image))
        self.call("cuCtxSynchronize")  # the stream does not wait for a copy from pageable memory
        self._memory.append((base, before, len(image), array))
        return int(base) + before

    def download(self, address: int) -> np.ndarray:
        """The array at an address that `upload` gave, after all work; fails where the bytes around it were written."""
        self.synchronise()
        base, before, total, array = next(entry for entry in self._memory if int(entry[0]) + entry[1] == address)
        image = np.empty(total, np.uint8)
        self.call("cuMemcpyDtoH", image.ctypes.data, base, total)
        assert (image[:before] == 0xA5).all(), "written before the array"
        assert (image[before + array.nbytes :] == 0xA5).all(), "written behind the array"
        return image[before : before + array.nbytes].view(array.dtype).reshape(array.shape)

    def captured(self, enqueue: Callable[[], None]) -> Callable[[], None]:
        """What `enqueue` puts on the stream, to be launched as a graph."""
        return self.driver.capture(self.stream, enqueue)


@pytest.fixture
def gpu(kernels: Kernels) -> Gpu:
    device = Gpu(kernels)
    yield device
    device.close()


def random_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Finite values of a dtype, those of two bytes as uint16."""
    values = rng.normal(0, 2, shape).astype(np.float32)
    if dtype == "float16":
        return values.astype(np.float16).view(np.uint16)
    return (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else values


def assert_same_bits(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal bit for bit; any NaN equals any other."""
    if got.dtype == np.float32:
        assert (np.isnan(got) == np.isnan(expected)).all()
        got, expected = (np.where(np.isnan(array), 0, array).view(np.uint32) for array in (got, expected))
    np.testing.assert_array_equal(got, expected)


def assert_equal_on_both(gpu: Gpu, name: str, *arguments: object, shift: int = 0, **keywords: object) -> None:
    """Runs a kernel on the GPU and its twin on the CPU; every array, given ones included, must be the same after it."""
    addresses = [gpu.upload(a, shift) if isinstance(a, np.ndarray) else None for a in arguments]
    named = {key: gpu.upload(value) for key, value in keywords.items()}
    on_gpu = [given if address is None else address for given, address in zip(arguments, addresses, strict=True)]
    getattr(gpu.kernels, name)(*on_gpu, stream=gpu.stream, **named)
    getattr(HOST, name)(*arguments, **keywords)
    for given, address in zip(arguments, addresses, strict=True):
        if address is not None:
            assert_same_bits(gpu.download(address), given)
    for key, address in named.items():
        assert_same_bits(gpu.download(address), keywords[key])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [0, 1])
def test_gather_latents(gpu: Gpu, dtype: str, size: int, shift: int) -> None:
    rng = np.random.default_rng(size)
    ring = rng.normal(0, 2, (7, size)).astype(np.float32)
    ring[3] = rng.integers(0, 2**32, size, dtype=np.uint32).view(np.float32)
    table = rng.integers(-1, 8, (4, 24), dtype=np.int32)
    out = random_values(rng, (24, size), dtype)
    assert_equal_on_both(
        gpu, "gather_latents", ring, table, np.array([2], np.int32), out, 24, size, 7, dtype, shift=shift
    )


def test_gather_latents_converts_every_kind_of_value(gpu: Gpu) -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    bits = np.random.default_rng(0).integers(0, 2**32, 2**17, dtype=np.uint32).view(np.float32)
    ties = (halves.view(np.uint32) + np.uint32(0x1000)).view(np.float32)
    ring = np.concatenate([halves, bits, ties])[None]
    for dtype, kind in DTYPES.items():
        out = np.zeros(ring.shape, kind)
        cursor, table = np.zeros(1, np.int32), np.zeros((1, 1), np.int32)
        assert_equal_on_both(gpu, "gather_latents", ring, table, cursor, out, 1, ring.size, 1, dtype)


@pytest.mark.parametrize("row_bytes", [1, 2, 7, 16, 20, 33, 640, 7680, 163_840])
@pytest.mark.parametrize("shift", [0, 1, 4])
def test_gather_rows(gpu: Gpu, row_bytes: int, shift: int) -> None:
    rng = np.random.default_rng(row_bytes)
    ring, out = (rng.integers(0, 256, (count, row_bytes), dtype=np.uint8) for count in (6, 24))
    table = rng.integers(0, 6, (3, 24), dtype=np.int32)
    source, target = gpu.upload(ring, shift), gpu.upload(out, shift)
    gpu.kernels.gather_rows(
        source, gpu.upload(table), gpu.upload(np.array([1], np.int32)), target, 24, row_bytes, gpu.stream
    )
    HOST.gather_rows(ring, table, np.array([1], np.int32), out, 24, row_bytes)
    np.testing.assert_array_equal(gpu.download(target), out)


def window_of(
    rng: np.random.Generator, frames: int, size: int, halves: int, dtype: str, calls: int, remembers: bool
) -> dict[str, np.ndarray | None]:
    """Random arrays for calls of one window whose frames lie in three windows at most, in slots of any order."""
    slots, most = frames + 3, 3
    places = np.empty((calls, frames, 4), np.int32)
    for call in range(calls):
        windows = rng.integers(1, most + 1, frames)
        places[call] = np.stack(
            [rng.permutation(slots)[:frames], windows, rng.integers(0, windows), rng.integers(0, 2, frames)], axis=1
        )
    return {
        "prediction": random_values(rng, (halves, frames, size), dtype),
        "ring": rng.normal(size=(slots, size)).astype(np.float32),
        "pending": rng.normal(size=(slots, most, size)).astype(np.float32),
        "history": rng.normal(size=(slots, size)).astype(np.float32) if remembers else None,
        "places": places,
        "weights": rng.normal(size=(calls, 6)).astype(np.float32),
        "cursor": np.array([calls - 1], np.int32),
        "status": np.zeros(1, np.int32),
    }


def step_arguments(arrays: dict[str, object], dtype: str, halves: int, frames: int, size: int) -> tuple[object, ...]:
    """In the order of `Kernels.step_window`."""
    one = arrays["prediction"], dtype, halves, frames, size, arrays["ring"], arrays["pending"], 3
    return *one, *(arrays[name] for name in ("history", "places", "weights", "cursor", "status"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("remembers", [False, True])
def test_step_window(gpu: Gpu, dtype: str, halves: int, size: int, shift: int, remembers: bool) -> None:
    arrays = window_of(np.random.default_rng(size), 24, size, halves, dtype, 4, remembers)
    assert_equal_on_both(gpu, "step_window", *step_arguments(arrays, dtype, halves, 24, size), shift=shift)
    assert arrays["status"][0] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("noted", [0, 2])
def test_step_window_notes_what_is_not_finite(gpu: Gpu, dtype: str, noted: int) -> None:
    bits = {
        "float32": (0x7FC00000, 0x7F800000, 0xFF800000),
        "float16": (0x7E00, 0x7C00, 0xFC00),
        "bfloat16": (0x7FC0, 0x7F80, 0xFF80),
    }[dtype]
    for pattern in bits:
        arrays = window_of(np.random.default_rng(0), 5, 77, 2, dtype, 4, True)
        whole = arrays["prediction"].view(np.uint32 if dtype == "float32" else np.uint16)
        whole[0, 3, 76] = pattern
        arrays["status"][0] = noted
        assert_equal_on_both(gpu, "step_window", *step_arguments(arrays, dtype, 2, 5, 77))
        assert arrays["status"][0] == (noted or 4)


def test_a_captured_call_serves_the_whole_schedule(gpu: Gpu) -> None:
    """Gather, step, advance: captured once, launched for every call; nothing in it waits or allocates."""
    frames, size, calls = 6, 130, 9
    rng = np.random.default_rng(1)
    arrays = window_of(rng, frames, size, 2, "float16", calls, True)
    arrays["cursor"][0] = 0
    arrays["weights"] *= np.float32(0.4)
    table, latents = arrays["places"][..., 0].copy(), np.zeros((frames, size), np.uint16)
    pointers = {name: gpu.upload(array) for name, array in arrays.items()}
    table_at, latents_at = gpu.upload(table), gpu.upload(latents)
    slots, cursor = len(arrays["ring"]), pointers["cursor"]

    def call() -> None:
        kernels, stream = gpu.kernels, gpu.stream
        kernels.gather_latents(pointers["ring"], table_at, cursor, latents_at, frames, size, slots, "float16", stream)
        kernels.step_window(*step_arguments(pointers, "float16", 2, frames, size), stream)
        kernels.advance(cursor, stream)

    launch = gpu.captured(call)
    for _ in range(calls):
        launch()
        HOST.gather_latents(arrays["ring"], table, arrays["cursor"], latents, frames, size, slots, "float16")
        HOST.step_window(*step_arguments(arrays, "float16", 2, frames, size))
        HOST.advance(arrays["cursor"])
    for name, array in arrays.items():
        assert_same_bits(gpu.download(pointers[name]), array)
    assert_same_bits(gpu.download(latents_at), latents)
    assert arrays["cursor"][0] == calls


@pytest.mark.parametrize("size", [1, 255, 16_384, 16_387, 4096 * 256 + 3])  # the last one: more than a grid's columns
def test_unscale(gpu: Gpu, size: int) -> None:
    latents = np.random.default_rng(size).standard_normal(size, np.float32)
    out = np.zeros(size, np.float32)
    there, target = gpu.upload(latents), gpu.upload(out)
    gpu.kernels.unscale(there, 0.18215, target, size, gpu.stream)
    HOST.unscale(latents, 0.18215, out, size)
    assert_same_bits(gpu.download(target), out)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 255, 1024, 16_384, 16_387])
def test_noise_is_within_one_unit_in_the_last_place(gpu: Gpu, size: int) -> None:
    for seed, frame in ((42, 0), ((7 << 32) + 5, 3), (2**64 - 1, 2**31), (1, 5999)):
        on_gpu, expected = gpu.upload(np.zeros(size, np.float32)), np.zeros(size, np.float32)
        gpu.kernels.noise(on_gpu, seed, frame, size, gpu.stream)
        HOST.noise(expected, seed, frame, size)
        assert (np.abs(gpu.download(on_gpu) - expected) <= np.spacing(np.abs(expected))).all()


@pytest.mark.parametrize("height, width", IMAGES)
@pytest.mark.parametrize("shift", [0, 1])
def test_median(gpu: Gpu, height: int, width: int, shift: int) -> None:
    frames = np.random.default_rng(width).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    assert_equal_on_both(gpu, "median", *frames, height, width, shift=shift)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("height, width", IMAGES)
@pytest.mark.parametrize("shift", [0, 1])
def test_to_rgb8(gpu: Gpu, dtype: str, height: int, width: int, shift: int) -> None:
    rng = np.random.default_rng(width)
    decoded = random_values(rng, (3, height, width), dtype)
    out = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    status = np.zeros(1, np.int32)
    assert_equal_on_both(gpu, "to_rgb8", decoded, dtype, height, width, out, shift=shift, status=status)
    assert status[0] == 0
    decoded[2, height - 1, 0] = {"float32": np.nan, "float16": 0x7C00, "bfloat16": 0x7FC0}[dtype]
    assert_equal_on_both(gpu, "to_rgb8", decoded, dtype, height, width, out, shift=shift, status=status)
    assert status[0] == 1
    assert_equal_on_both(gpu, "to_rgb8", decoded, dtype, height, width, out)


@pytest.mark.parametrize("height, width", IMAGES)
@pytest.mark.parametrize("shift", [0, 1])
def test_rgb_to_nv12(gpu: Gpu, height: int, width: int, shift: int) -> None:
    rng = np.random.default_rng(width)
    rgb = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = rng.integers(0, 256, height * width + 2 * (-(-height // 2) * -(-width // 2)), dtype=np.uint8)
    assert_equal_on_both(gpu, "rgb_to_nv12", rgb, out, height, width, shift=shift)


def test_more_rows_than_a_grid_has_are_done_in_turn(gpu: Gpu) -> None:
    height, rng = 65_535 + 7, np.random.default_rng(0)
    decoded, out = random_values(rng, (3, height, 1), "float16"), np.zeros((height, 1, 3), np.uint8)
    assert_equal_on_both(gpu, "to_rgb8", decoded, "float16", height, 1, out)
    frames = rng.integers(0, 256, (3, height, 1, 3), dtype=np.uint8)
    assert_equal_on_both(gpu, "median", *frames, out, height, 1)


@pytest.mark.parametrize("out_dtype", ["uint8", *DTYPES])
@pytest.mark.parametrize("points_dtype", ["float32", "float64"])
@pytest.mark.parametrize("spread", [1, 3, 100])
def test_draw_keypoints(gpu: Gpu, out_dtype: str, points_dtype: str, spread: int) -> None:
    rng, height, width = np.random.default_rng(spread), 190, 257
    points = (rng.uniform(-0.5, 0.5, (40, 3, 2)) * spread + 0.5) * (width, height)
    points[:8, 0] = points[:8, 2] + np.arange(8)[:, None] * [(5, 5)]
    points[8:16, 0] = np.rint(points[8:16, 2]) + np.arange(8)[:, None] * [(-5, 5)]
    points[16, 1, 0] = np.nan
    points[17:25] = np.rint(points[17:25])
    points = points.astype(points_dtype)
    shape = (40, height, width, 3) if out_dtype == "uint8" else (40, 3, height, width)
    out = np.full(shape, 9, np.uint8 if out_dtype == "uint8" else DTYPES[out_dtype])
    at, target = gpu.upload(points), gpu.upload(out)
    gpu.kernels.draw_keypoints(at, 40, height, width, target, out_dtype, gpu.stream, points_dtype)
    HOST.draw_keypoints(points, 40, height, width, out, out_dtype, points_dtype=points_dtype)
    assert_same_bits(gpu.download(target), out)


def test_a_dtype_without_a_kernel_is_refused(gpu: Gpu) -> None:
    with pytest.raises(ValueError, match="no kernel gather_latents_int8: dtypes are float32, float16, bfloat16"):
        gpu.kernels.gather_latents(0, 0, 0, 0, 1, 1, 1, "int8", gpu.stream)


def test_the_c_library_does_the_same(gpu: Gpu, kernel_library: Path) -> None:
    library, frames, size = ctypes.CDLL(str(kernel_library)), 5, 77
    pointer, index = ctypes.c_void_p, ctypes.c_int64
    arrays = window_of(np.random.default_rng(3), frames, size, 2, "bfloat16", 2, True)
    at = {name: pointer(gpu.upload(array)) for name, array in arrays.items()}
    table, latents = arrays["places"][..., 0].copy(), np.zeros((frames, size), np.uint16)
    table_at, latents_at = gpu.upload(table), gpu.upload(latents)
    sizes = index(frames), index(size), index(len(arrays["ring"]))
    stream, half, brain = pointer(gpu.stream), ctypes.c_int(1), ctypes.c_int(2)
    gather = at["ring"], pointer(table_at), at["cursor"], pointer(latents_at), *sizes
    assert library.vexpress_gather_latents(*gather, half, stream) == 0
    state = at["ring"], at["pending"], index(3), at["history"], at["places"], at["weights"], at["cursor"], at["status"]
    assert library.vexpress_step_window(at["prediction"], brain, index(2), *sizes[:2], *state, stream) == 0
    assert library.vexpress_advance(at["cursor"], stream) == 0
    assert library.vexpress_gather_latents(*gather, ctypes.c_int(4), stream) != 0
    HOST.gather_latents(arrays["ring"], table, arrays["cursor"], latents, *(s.value for s in sizes), "float16")
    HOST.step_window(*step_arguments(arrays, "bfloat16", 2, frames, size))
    HOST.advance(arrays["cursor"])
    for name, array in arrays.items():
        assert_same_bits(gpu.download(at[name].value), array)
    assert_same_bits(gpu.download(latents_at), latents)
