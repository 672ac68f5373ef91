"""Decoding and key-point features on a device give the CPU's bits, whatever the device's streams do meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from denoiser_inputs import denoiser_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from unsteady_device import UnsteadyDevice

pytest.importorskip("av", reason="the stages of the CPU need media output")

from vexpress_trt.engines.call_sizes import CHUNK
from vexpress_trt.engines.device_engine import DeviceEngine
from vexpress_trt.engines.engine import CancelledError
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import SchedulerConfig, TensorSpec
from vexpress_trt.runtime.cuda.decoder import DeviceDecoder
from vexpress_trt.runtime.cuda.features import DeviceFeatures
from vexpress_trt.runtime.cuda.host_device import HostDevice
from vexpress_trt.runtime.cuda.loop import DeviceLoop
from vexpress_trt.runtime.generation import quantised
from vexpress_trt.runtime.median import filtered
from vexpress_trt.runtime.noise import frame_noise
from vexpress_trt.runtime.scheduler import make_scheduler
from vexpress_trt.runtime.stages import KeypointFeatures, decode
from vexpress_trt.runtime.summary import Stopwatch
from vexpress_trt.runtime.windows import WindowPlan, batches, live_windows

SHAPE = (4, 2, 3)
SCALING = 0.18215
CALL = ("B", 2, "F", 4, "h", "w")


class Computing(DeviceEngine):
    """A graph of one input and one output, computed by a function of arrays."""

    def __init__(
        self, device: HostDevice, name: str, given: TensorSpec, result: TensorSpec,
        function: Callable[[np.ndarray], np.ndarray],
    ) -> None:  # fmt: skip
        self.spec = SimpleNamespace(name=name, inputs=(given,), outputs=(result,))
        self.cancelled = False
        self.captured = 0
        self._device = device
        self._function = function

    def run(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        return {self.spec.outputs[0].name: self._function(arrays[self.spec.inputs[0].name])}

    def bind_buffers(self, **buffers: np.ndarray) -> None:
        self._buffers = buffers

    def enqueue(self, stream: int) -> None:
        if isinstance(self._device, UnsteadyDevice):
            self._device.enqueue(stream, self._compute)
        else:
            self._compute()

    def capture(self, stream: int, body: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        return body

    def _compute(self) -> None:
        (given,), (result,) = self.spec.inputs, self.spec.outputs
        self._buffers[result.name][...] = self._function(self._buffers[given.name])


def enlarged(latents: np.ndarray) -> np.ndarray:
    """[N, 3, 8h, 8w] of latents [N, 4, h, w]: reaches beyond -1 and 1, no pixel like its neighbour."""
    image = np.repeat(np.repeat(latents[:, :3] * np.float32(0.2), 8, axis=2), 8, axis=3)
    return image + np.linspace(-0.5, 0.5, image[0].size, dtype=np.float32).reshape(image[0].shape)


def decoder_on(device: HostDevice) -> Computing:
    return Computing(
        device, "vae_decoder", TensorSpec("latents", "float32", ("N", 4, "h", "w")),
        TensorSpec("image", "float32", ("N", 3, "8*h", "8*w")), enlarged,
    )  # fmt: skip


def pooled(rgb: np.ndarray) -> np.ndarray:
    """[N, 2, h, w] of images [N, 3, 8h, 8w]."""
    return rgb[:, :2, ::8, ::8] - rgb[:, 1:, 3::8, 3::8] * np.float32(0.3)


def guider_on(device: HostDevice, function: Callable[[np.ndarray], np.ndarray] = pooled) -> Computing:
    given = TensorSpec("rgb", "float32", ("N", 3, "8*h", "8*w"))
    return Computing(device, "kps_guider", given, TensorSpec("feature", "float32", ("N", 2, "h", "w")), function)


class Predicting(Computing):
    """A denoiser that predicts from latents, tokens and features."""

    def __init__(self, device: HostDevice) -> None:
        super().__init__(device, "denoiser_guided", *([TensorSpec("prediction", "float32", CALL)] * 2), np.sin)
        self.spec.inputs = denoiser_inputs()

    def _compute(self) -> None:
        buffers = self._buffers
        known = buffers["tokens"].mean(axis=(2, 3)) + buffers["kps_feature"].mean(axis=(2, 3, 4))
        mixed = buffers["latents"] + known[..., None, None, None]
        for half in range(2):
            buffers["prediction"][:, half] = np.sin(mixed * np.float32(1.7 - half))


def latents_of(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((length, *SHAPE), np.float32)


def on_cpu(latents: np.ndarray) -> np.ndarray:
    """Frames uint8 [L, H, W, 3] by the stages of the CPU."""
    engine = decoder_on(HostDevice())

    @contextmanager
    def use(_: str) -> Iterator[Computing]:
        yield engine

    model = SimpleNamespace(latent_scaling=SCALING)
    engines = SimpleNamespace(use=use, bundle=SimpleNamespace(manifest=SimpleNamespace(model=model)))
    return np.stack(list(filtered(quantised(decode(engines, enumerate(latents), Stopwatch())))))


def on_device(
    device: HostDevice, latents: np.ndarray, *, length: int, room: int, from_host: bool, capture: bool = True
) -> tuple[np.ndarray, Computing]:
    """Frames by the device, and its engine. Latents in device memory lie in one place, which is overwritten."""
    engine = decoder_on(device)
    decoder = DeviceDecoder(
        device, engine, length=length, shape=SHAPE, scaling=SCALING, room=room, capture=capture
    )  # fmt: skip
    stream, place = device.stream(), device.arena({"final": (SHAPE, np.dtype(np.float32))})["final"]
    staged = device.pinned((len(latents), *SHAPE), np.dtype(np.float32))
    staged[...] = latents
    frames = []
    for index, latent in enumerate(latents):
        if from_host:
            decoder.take_from_host(index, latent)
        else:
            device.upload(staged[index], place, stream)
            decoder.take(index, place, stream)
        frames += decoder.finished()
    for rest in decoder.rest():
        frames += rest
    assert [index for index, _ in frames] == list(range(length))
    return np.stack([frame for _, frame in frames]), engine


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 14),
    beyond=st.integers(0, 3),
    room=st.sampled_from([3, 4, 8]),
    from_host=st.booleans(),
    seed=st.one_of(st.none(), st.integers(0, 2**32)),
)
def test_frames_are_the_cpus_bit_for_bit(
    length: int, beyond: int, room: int, from_host: bool, seed: int | None
) -> None:
    """Also for a clip of one frame, with latents behind the clip's end, and however the streams interleave."""
    latents = latents_of(length + beyond)
    device = HostDevice() if seed is None else UnsteadyDevice(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vexpress_trt.runtime.cuda.running.POLL_SECONDS", 0.0)
        found, _ = on_device(device, latents, length=length, room=room, from_host=from_host)
    np.testing.assert_array_equal(found, on_cpu(latents[:length]))


def test_the_decoder_is_captured_before_there_is_a_frame() -> None:
    """Then no frame waits for the denoiser's calls that a capture would wait for."""
    latents, ahead = latents_of(5), decoder_on(HostDevice())
    DeviceDecoder(HostDevice(), ahead, length=5, shape=SHAPE, scaling=SCALING)
    assert ahead.captured == 1
    captured, engine = on_device(HostDevice(), latents, length=5, room=8, from_host=False)
    eager, other = on_device(HostDevice(), latents, length=5, room=8, from_host=False, capture=False)
    assert (engine.captured, other.captured) == (1, 0)
    np.testing.assert_array_equal(captured, eager)


@pytest.mark.parametrize("frame", [0, 4, 9])
def test_an_image_that_is_not_finite_names_graph_and_frame(frame: int) -> None:
    latents = latents_of(10)
    latents[frame, 0, 1, 1] = np.nan
    with pytest.raises(UserError, match=f"vae_decoder produced non-finite values .image of frame {frame}"):
        on_device(HostDevice(), latents, length=10, room=4, from_host=False)


def test_a_cancelled_decoder_ends_it() -> None:
    device = HostDevice()
    engine = decoder_on(device)
    decoder = DeviceDecoder(device, engine, length=3, shape=SHAPE, scaling=SCALING)
    decoder.take_from_host(0, latents_of(1)[0])
    engine.cancelled = True
    with pytest.raises(CancelledError, match="vae_decoder was cancelled"):
        decoder.take_from_host(1, latents_of(1)[0])


@settings(deadline=None, max_examples=25)
@given(
    count=st.integers(1, 20),
    kind=st.sampled_from([np.float32, np.float64]),
    seed=st.one_of(st.none(), st.integers(0, 2**32)),
)
def test_key_point_features_are_the_cpus_bit_for_bit(count: int, kind: type, seed: int | None) -> None:
    """Two windows of `count` frames, one behind the other."""
    height, width = 8 * SHAPE[1], 8 * SHAPE[2]
    points = (np.random.default_rng(count).uniform(-4, 30, (2 * count, 3, 2))).astype(kind)

    expected = np.empty((2 * count, 2, *SHAPE[1:]), np.float32)
    KeypointFeatures(guider_on(HostDevice()), points, width, height, live_frames=1, budget=0).window(0, expected)

    device = HostDevice() if seed is None else UnsteadyDevice(seed)
    features = DeviceFeatures(device, guider_on(device), points, shape=SHAPE, rows=2 * count)
    ring = device.arena({"ring": (expected.shape, np.dtype(np.float32))})["ring"]
    stream = device.stream()
    for window in range(2):
        frames = range(window * count, (window + 1) * count)
        features.enqueue(
            frames, lambda frame: device.part(ring, frame * expected[0].size, (1, *expected.shape[1:])), stream
        )
    device.close()
    np.testing.assert_array_equal(ring, expected)
    assert CHUNK < 20, "more than one call of the guider is needed for this test to say anything"


@settings(deadline=None, max_examples=40)
@given(
    seed=st.one_of(st.none(), st.integers(0, 2**32)),
    length=st.integers(7, 18),
    steps=st.integers(1, 3),
    room=st.sampled_from([3, 8, 14]),
)
def test_behind_the_loop_on_a_device_they_give_what_the_cpu_gives(
    seed: int | None, length: int, steps: int, room: int
) -> None:
    """Features, loop and decoder joined by events: the decoder's copies must come before the loop reuses its slots."""
    plan = WindowPlan.covering(length, 6, 2)
    points = np.random.default_rng(length).uniform(0, 24, (plan.frames, 3, 2))
    scheduler = make_scheduler(SchedulerConfig(), steps)

    def start(first: int, noise: np.ndarray, tokens: np.ndarray, features: np.ndarray | None) -> None:
        for row, latent in enumerate(noise):
            latent[...] = frame_noise(7, first + row, SHAPE)
            tokens[row] = np.sin(first + row)
        if features is not None:
            KeypointFeatures(guider_on(HostDevice()), points, 24, 16, live_frames=1, budget=0).window(first, features)

    def latents_and_images(device: HostDevice, there: bool) -> list[tuple[int, np.ndarray]]:
        denoiser = Predicting(device)
        features = decoder = None
        if there:
            features = DeviceFeatures(device, guider_on(device), points, shape=SHAPE, rows=2 * plan.window)
            decoder = DeviceDecoder(
                device, decoder_on(device), length=length, shape=SHAPE, scaling=SCALING, room=room
            )  # fmt: skip
        with DeviceLoop(
            device, lambda step: denoiser, plan=plan, scheduler=scheduler, shape=SHAPE, guidance_scale=2.0,
            live_windows=live_windows(plan, steps), features=features, decoder=decoder,
        ) as loop:  # fmt: skip
            return [frame for _, frames in loop.run(batches(plan, steps, 1), start) for frame in frames]

    latents = latents_and_images(HostDevice(), there=False)
    expected = on_cpu(np.stack([latent for _, latent in latents[:length]]))
    device = HostDevice() if seed is None else UnsteadyDevice(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vexpress_trt.runtime.cuda.running.POLL_SECONDS", 0.0)
        found = latents_and_images(device, there=True)
    assert [index for index, _ in found] == list(range(length))
    np.testing.assert_array_equal(np.stack([image for _, image in found]), expected)


def spoiled(rgb: np.ndarray) -> np.ndarray:
    """Features that are not finite where an image has a face."""
    return pooled(rgb) + np.where(rgb.any(axis=(1, 2, 3), keepdims=True), np.float32(np.inf), np.float32(0))


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (3, r"kps_guider produced non-finite values \(feature of frames 0-5, window 0\)"),
        (9, r"kps_guider produced non-finite values \(feature of frames 4-9, window 1\)"),
        (37, r"kps_guider produced non-finite values \(feature of frames 32-37, window 8\)"),
        (None, r"denoiser_guided produced non-finite values \(prediction of window 2, step 0\)"),
    ],
)
def test_what_made_values_that_are_not_finite_is_told_from_what_read_them(
    frame: int | None, said: str, batch: int, steps: int, seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One frame's features are spoiled, or else latents that only the denoiser takes; the decoder reads them at once
    where there is one step."""
    plan = WindowPlan(6, 2, 9)
    points = np.full((plan.frames, 3, 2), -1000.0)
    if frame is not None:
        points[frame] = [(5, 5), (15, 5), (10, 10)]

    def start(first: int, noise: np.ndarray, tokens: np.ndarray, features: np.ndarray | None) -> None:
        noise[...], tokens[...] = 0.0, 0.0
        if frame is None and first <= 10 < first + len(noise):
            noise[10 - first] = np.nan

    monkeypatch.setattr("vexpress_trt.runtime.cuda.running.POLL_SECONDS", 0.0)
    device = HostDevice() if seed is None else UnsteadyDevice(seed)
    denoiser = Predicting(device)
    with DeviceLoop(
        device, lambda step: denoiser, plan=plan, scheduler=make_scheduler(SchedulerConfig(), steps), shape=SHAPE,
        guidance_scale=2.0, live_windows=live_windows(plan, steps, batch), window_batch=batch,
        features=DeviceFeatures(device, guider_on(device, spoiled), points, shape=SHAPE, rows=2 * plan.window),
        decoder=DeviceDecoder(device, decoder_on(device), length=plan.frames, shape=SHAPE, scaling=SCALING, room=4),
    ) as loop, pytest.raises(UserError, match=said):  # fmt: skip
        list(loop.run(batches(plan, steps, batch), start))
