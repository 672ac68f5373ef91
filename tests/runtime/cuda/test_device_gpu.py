"""The GPU as a device: memory, streams and events do what the loop relies on, and the loop gives the CPU's numbers."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from vexpress_trt.engines.device_engine import DeviceEngine
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.engines.manifest import SchedulerConfig, TensorSpec
from vexpress_trt.runtime.cuda.device import Buffer, Device
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


class Mixing(DeviceEngine):
    """Predicts by a kernel, so that the CPU's twin predicts the same bits: the conditional half is the window, the
    unconditional one the window in reverse."""

    cancelled = False

    def __init__(self, device: Device) -> None:
        inputs = (
            TensorSpec("latents", "float32", ("B", "F", 4, "h", "w")),
            TensorSpec("timestep", "float32", ("B",)),
            TensorSpec("tokens", "float16", ("B", "F", 5, 3)),
            TensorSpec("kps_feature", "float16", ("B", "F", 2, "h", "w")),
        )
        outputs = (TensorSpec("prediction", "float32", ("B", 2, "F", 4, "h", "w")),)
        self.spec = SimpleNamespace(name="denoiser_guided", inputs=inputs, outputs=outputs)
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
