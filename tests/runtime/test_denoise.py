"""The loop gathers into buffers that exist once, in any batch, and allocates nothing large while it runs."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from denoiser_inputs import denoiser_inputs

from vexpress_trt.engines.call_sizes import CHUNK
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import SchedulerConfig, TensorSpec
from vexpress_trt.runtime.denoise import denoise
from vexpress_trt.runtime.latent_store import LatentStore
from vexpress_trt.runtime.noise import frame_noise
from vexpress_trt.runtime.scheduler import Scheduler
from vexpress_trt.runtime.stages import KeypointFeatures
from vexpress_trt.runtime.windows import WindowPlan, batches, live_windows

FRAMES, STEPS = 24, 3
PLAN = WindowPlan(FRAMES, 4, 12)


class Guider:
    """Features are the drawing's mean, wherever that is not black; remembers how many frames it was asked for."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.output = np.empty((CHUNK, channels, height, width), np.float32)
        self.calls = 0

    def run(self, rgb: np.ndarray) -> dict[str, np.ndarray]:
        self.calls += 1
        self.output[...] = rgb.mean(axis=(1, 2, 3))[:, None, None, None]
        return {"feature": self.output}


class Denoiser:
    """Predicts from all of its inputs, into one array."""

    def __init__(self, batch: int, channels: int, height: int, width: int) -> None:
        inputs = (*denoiser_inputs(channels=channels), TensorSpec("key_00", "float32", (1, 2, "h*w", 4)))
        self.spec = SimpleNamespace(name="denoiser_guided", inputs=inputs)
        self.output = np.empty((batch, 2, FRAMES, 4, height, width), np.float32)
        self.seen: dict[str, set[int]] = {}

    def run(self, latents: np.ndarray, timestep: np.ndarray, **others: np.ndarray) -> dict[str, np.ndarray]:
        assert set(others) == {"tokens", "kps_feature"}
        for name, array in {"latents": latents, "timestep": timestep, **others}.items():
            self.seen.setdefault(name, set()).add(array.ctypes.data)
        prediction = self.output[: len(latents)]
        np.multiply(latents, np.float32(0.5), out=prediction[:, 0])
        np.add(prediction[:, 0], (timestep / 1000)[:, None, None, None, None], out=prediction[:, 1])
        prediction[:, 1] += others["tokens"].mean(axis=(2, 3))[..., None, None, None]
        prediction[:, 1] += others["kps_feature"][:, :, :1]
        return {"prediction": prediction}


def _loop(batch: int = 1, channels: int = 2, size: int = 4, budget: int = 1 << 30, noise=None):
    """(the loop, its denoiser, its guider) of a clip whose tokens are the frames' numbers."""
    denoiser, guider = Denoiser(batch, channels, size, size), Guider(channels, size, size)
    scheduler, shape = Scheduler(SchedulerConfig(), STEPS), (4, size, size)
    noise = noise or (lambda frame: frame_noise(1, frame, shape))
    points = np.random.default_rng(0).uniform(1, 8 * size - 1, (PLAN.frames, 3, 2))

    def tokens(start: int, out: np.ndarray) -> None:
        out[...] = np.arange(start, start + len(out), dtype=np.float32)[:, None, None] / 100

    live = live_windows(PLAN, STEPS, batch)
    store = LatentStore(PLAN, scheduler, noise, shape, guidance_scale=2.0, live_windows=live)
    calls = denoise(
        lambda step: denoiser,
        store,
        batches(PLAN, STEPS, batch),
        plan=PLAN,
        scheduler=scheduler,
        speech=SimpleNamespace(window=tokens),
        features=KeypointFeatures(
            guider, points, 8 * size, 8 * size, live_frames=PLAN.live_frames(live), budget=budget
        ),
        latent_size=(size, size),
        window_batch=batch,
    )
    return calls, denoiser, guider


def _latents(calls) -> np.ndarray:
    final = [frame for _, frames in calls for frame in frames]
    assert [frame for frame, _ in final] == list(range(PLAN.frames))
    return np.stack([latent for _, latent in final])


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_batches_of_windows_give_what_single_ones_give(batch: int) -> None:
    assert (_latents(_loop(batch)[0]) == _latents(_loop()[0])).all()


@pytest.mark.parametrize("remembered", [0, 1, 3, 30])
def test_features_are_the_same_however_few_are_remembered(remembered: int) -> None:
    calls, _, guider = _loop(budget=remembered * 2 * 4 * 4 * 4)
    assert (_latents(calls) == _latents(_loop()[0])).all()
    assert guider.calls >= PLAN.windows


def test_features_of_frames_that_are_remembered_are_computed_once() -> None:
    calls, _, guider = _loop()
    _latents(calls)
    assert guider.calls == 3 * PLAN.windows  # 24 or 20 new frames each, eight at a time


def test_every_call_uses_the_same_buffers() -> None:
    calls, denoiser, _ = _loop(batch=2)
    _latents(calls)
    assert {name: len(places) for name, places in denoiser.seen.items()} == {
        "latents": 1, "timestep": 1, "tokens": 1, "kps_feature": 1,
    }  # fmt: skip


@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_nothing_large_is_allocated_while_it_runs(budget: int) -> None:
    """Large is a window's latents, 1.5 MiB here. What leaves the loop, the final frames, is not counted."""
    size, channels = 64, 16
    calls, _, _ = _loop(channels=channels, size=size, budget=budget)
    window = FRAMES * 4 * size * size * 4
    tracemalloc.start()
    try:
        for _ in range(6):
            next(calls)
        for _ in range(12):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            _, frames = next(calls)
            given = sum(latent.nbytes for _, latent in frames)
            assert tracemalloc.get_traced_memory()[1] - before - given < window
            del frames
    finally:
        tracemalloc.stop()


def test_a_prediction_that_is_not_finite_names_graph_window_and_step() -> None:
    shape = (4, 4, 4)
    calls, _, _ = _loop(noise=lambda frame: np.full(shape, np.nan if frame == 33 else 0.0, np.float32))
    with pytest.raises(UserError, match="denoiser_guided produced non-finite values .*window 1, step 0"):
        _latents(calls)
