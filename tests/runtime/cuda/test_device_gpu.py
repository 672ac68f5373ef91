"""The GPU as a device: memory, streams and events do what the loop relies on, and the loop gives the CPU's numbers."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from denoiser_inputs import denoiser_inputs

from vexpress_trt.engines.device_engine import DeviceEngine
from vexpress_trt.engines.driver import driver
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.engines.manifest import SchedulerConfig, TensorSpec
from vexpress_trt.runtime.cuda.decoder import DeviceDecoder
from vexpress_trt.runtime.cuda.device import Buffer, Device
from vexpress_trt.runtime.cuda.features import DeviceFeatures
from vexpress_trt.runtime.cuda.gpu import GpuDevice
from vexpress_trt.runtime.cuda.host_device import HostDevice
from vexpress_trt.runtime.cuda.loop import DeviceLoop
from vexpress_trt.runtime.noise import frame_noise
from vexpress_trt.runtime.scheduler import make_scheduler
from vexpress_trt.runtime.windows import WindowPlan, batches, live_windows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(gpu_status().reason), reason=gpu_status().reason or "there is a GPU"),
]
SHAPE = (4, 1, 3)


@pytest.fixture
def device() -> Iterator[GpuDevice]:
    gpu = GpuDevice()
    yield gpu
    gpu.close()


def settled(device: Device, stream: int) -> None:
    event = device.event()
    device.record(event, stream)
    while not device.happened(event):
        pass


def test_what_is_uploaded_comes_back(device: GpuDevice) -> None:
    arena = device.arena({"bytes": ((3, 5), np.dtype(np.uint8)), "floats": ((4, 7), np.dtype(np.float32))})
    there, back = device.pinned((2, 7), np.dtype(np.float32)), device.pinned((4, 7), np.dtype(np.float32))
    there[:] = np.random.default_rng(0).normal(size=(2, 7))
    back[:] = np.nan
    stream = device.stream()
    device.upload(there, device.part(arena["floats"], 7, (2, 7)), stream)
    device.download(arena["floats"], back, stream)
    settled(device, stream)
    np.testing.assert_array_equal(back[1:3], there)
    assert not back[[0, 3]].any()
    device.copy(device.part(arena["floats"], 7, (2, 7)), device.part(arena["floats"], 14, (2, 7)), stream)
    device.download(arena["floats"], back, stream)
    settled(device, stream)
    np.testing.assert_array_equal(back[2:4], there)
    device.clear(arena["floats"], stream)
    device.download(arena["floats"], back, stream)
    settled(device, stream)
    assert not back.any()
    assert arena["floats"].pointer % 256 == 0


def test_a_stream_waits_for_an_event_of_another(device: GpuDevice) -> None:
    arena = device.arena({"large": ((64 << 20,), np.dtype(np.uint8))})
    there, back = (device.pinned((64 << 20,), np.dtype(np.uint8)) for _ in range(2))
    there[:] = 7
    first, second, event = device.stream(), device.stream(), device.event()
    for _ in range(4):
        device.upload(there, arena["large"], first)
    device.record(event, first)
    device.wait(second, event)
    device.download(arena["large"], back, second)
    settled(device, second)
    assert (back == 7).all()


def test_a_capture_whose_work_fails_to_enqueue_leaves_the_stream_as_it_was(device: GpuDevice) -> None:
    """Nor anything else: the stand-in of the driver fails tests that leave a graph."""
    bytes_ = np.dtype(np.uint8)
    buffer, host = device.arena({"bytes": ((3,), bytes_)})["bytes"], device.pinned((3,), bytes_)
    host[:] = 7
    stream = device.stream()
    device.upload(host, buffer, stream)

    def clear() -> None:
        device.clear(buffer, stream)

    def fail() -> None:
        clear()
        raise ZeroDivisionError

    with driver(0).current():
        with pytest.raises(ZeroDivisionError):
            driver(0).capture(stream, fail)
        replay = driver(0).capture(stream, clear)
    for expected in (7, 0):
        device.download(buffer, host, stream)
        settled(device, stream)
        assert (host == expected).all()
        replay()


class Mixing(DeviceEngine):
    """Predicts by a kernel, so that the CPU's twin predicts the same bits: the conditional half is the window, the
    unconditional one the window in reverse."""

    cancelled = False

    def __init__(self, device: Device) -> None:
        outputs = (TensorSpec("prediction", "float32", ("B", 2, "F", 4, "h", "w")),)
        self.spec = SimpleNamespace(name="denoiser_guided", inputs=denoiser_inputs("float16"), outputs=outputs)
        self._device = device

    def bind_buffers(self, **buffers: Buffer) -> None:
        self._buffers = buffers

    def capture(self, stream: int, body: Callable[[], None]) -> Callable[[], None]:
        raise AssertionError("the loop is told not to capture")

    def enqueue(self, stream: int) -> None:
        device, buffers = self._device, self._buffers
        latents, prediction = buffers["latents"], buffers["prediction"]
        size = int(np.prod(SHAPE))
        window = latents.shape[1]
        rows = device.part(prediction, window * size, (window, size))
        for target, order in ((prediction, "back"), (rows, "same")):
            device.kernels.gather_rows(
                device.address(latents), device.address(self.orders[order]), device.address(self.orders["zero"]),
                device.address(target), window, 4 * size, stream,
            )  # fmt: skip


def fill(start: int, noise: np.ndarray, tokens: np.ndarray, features: np.ndarray) -> None:
    for row in range(len(noise)):
        noise[row] = frame_noise(7, start + row, SHAPE)


def latents_on(device: Device) -> np.ndarray:
    plan, steps = WindowPlan(6, 2, 40), 5
    scheduler = make_scheduler(SchedulerConfig(), steps, "dpmpp_2m")
    engine = Mixing(device)
    int32 = np.dtype(np.int32)
    engine.orders = device.arena({name: ((plan.window,), int32) for name in ("back", "same", "zero")})
    orders = {"back": np.arange(plan.window)[::-1], "same": np.arange(plan.window)}
    stream = device.stream()
    for name, order in orders.items():
        staged = device.pinned((plan.window,), int32)
        staged[:] = order
        device.upload(staged, engine.orders[name], stream)
    settled(device, stream)
    with DeviceLoop(
        device, lambda step: engine, plan=plan, scheduler=scheduler, shape=SHAPE, guidance_scale=2.5,
        live_windows=live_windows(plan, steps), capture=False,
    ) as loop:  # fmt: skip
        results = list(loop.run(batches(plan, steps, 1), fill))
    return np.stack([latent for _, frames in results for _, latent in frames])


def test_the_loop_gives_the_bits_of_the_cpu() -> None:
    np.testing.assert_array_equal(latents_on(GpuDevice()), latents_on(HostDevice()))


class Tiling(DeviceEngine):
    """A graph whose output is rows of its input, copied by a kernel: the same bits on every device."""

    cancelled = False

    def __init__(
        self, device: Device, name: str, given: TensorSpec, result: TensorSpec, row: int, taken: np.ndarray
    ) -> None:
        """`row`: values of float32 in a row; `taken`: for each of the output's rows, the number of the input's."""
        self.spec = SimpleNamespace(name=name, inputs=(given,), outputs=(result,))
        self._device, self._row, self._rows = device, row, len(taken)
        int32 = np.dtype(np.int32)
        self._tables = device.arena({"table": (taken.shape, int32), "zero": ((1,), int32)})
        self._staged = device.pinned(taken.shape, int32)
        self._staged[:] = taken
        stream = device.stream()
        device.upload(self._staged, self._tables["table"], stream)
        settled(device, stream)

    def bind_buffers(self, **buffers: Buffer) -> None:
        self._buffers = buffers

    def capture(self, stream: int, body: Callable[[], None]) -> Callable[[], None]:
        return body

    def enqueue(self, stream: int) -> None:
        device = self._device
        given, result = (self._buffers[tensor[0].name] for tensor in (self.spec.inputs, self.spec.outputs))
        device.kernels.gather_rows(
            *map(device.address, (given, self._tables["table"], self._tables["zero"], result)),
            self._rows, 4 * self._row, stream,
        )  # fmt: skip


def frames_on(device: Device, *, from_host: bool) -> np.ndarray:
    """25 decoded and filtered frames of 16x24 pixels, uint8 [25, 16, 24, 3]."""
    shape, length = (4, 2, 3), 25
    given = TensorSpec("latents", "float32", ("N", 4, "h", "w"))
    engine = Tiling(
        device, "vae_decoder", given, TensorSpec("image", "float32", ("N", 3, "8*h", "8*w")), 6, np.arange(192) % 4
    )
    latents = np.stack([frame_noise(5, frame, shape) for frame in range(length)]) * np.float32(0.1)
    staged, place = device.pinned(latents.shape, latents.dtype), device.arena({"final": (shape, latents.dtype)})
    staged[...] = latents
    decoder = DeviceDecoder(device, engine, length=length, shape=shape, scaling=0.18215)
    stream, frames = device.stream(), []
    for index, latent in enumerate(latents):
        if from_host:
            decoder.take_from_host(index, latent)
        else:
            device.upload(staged[index], place["final"], stream)
            decoder.take(index, place["final"], stream)
        frames += decoder.finished()
    for rest in decoder.rest():
        frames += rest
    assert [index for index, _ in frames] == list(range(length))
    device.close()
    return np.stack([image for _, image in frames])


def features_on(device: Device) -> np.ndarray:
    """The features of two windows of 11 frames, float32 [22, 2, 2, 3]."""
    shape = (4, 2, 3)
    given = TensorSpec("rgb", "float32", ("N", 3, "8*h", "8*w"))
    guider = Tiling(
        device, "kps_guider", given, TensorSpec("feature", "float32", ("N", 2, "h", "w")), 12, 96 * np.arange(8) + 16
    )
    points = np.random.default_rng(1).uniform(0, 24, (22, 3, 2))
    features = DeviceFeatures(device, guider, points, shape=shape, rows=22)
    ring = device.arena({"ring": ((22, 2, 2, 3), np.dtype(np.float32))})["ring"]
    back, stream = device.pinned((22, 2, 2, 3), np.dtype(np.float32)), device.stream()
    for window in range(2):
        frames = range(11 * window, 11 * window + 11)
        features.enqueue(frames, lambda frame: device.part(ring, 12 * frame, (1, 2, 2, 3)), stream)
    device.download(ring, back, stream)
    settled(device, stream)
    found = back.copy()
    device.close()
    return found


@pytest.mark.parametrize("from_host", [False, True])
def test_decoded_frames_are_the_cpus_bit_for_bit(from_host: bool) -> None:
    np.testing.assert_array_equal(
        frames_on(GpuDevice(), from_host=from_host), frames_on(HostDevice(), from_host=from_host)
    )


def test_features_are_the_cpus_bit_for_bit() -> None:
    np.testing.assert_array_equal(features_on(GpuDevice()), features_on(HostDevice()))
