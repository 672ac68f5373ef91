"""The loop on a device gives the latents of the loop on the CPU bit for bit, whatever its streams do meanwhile."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from denoiser_inputs import denoiser_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_order import joint_order
from unsteady_device import UnsteadyDevice

from vexpress_trt.engines.device_engine import DeviceEngine
from vexpress_trt.engines.engine import CancelledError
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import SchedulerConfig, TensorSpec
from vexpress_trt.runtime.cuda import buffers
from vexpress_trt.runtime.cuda import loop as loop_module
from vexpress_trt.runtime.cuda.host_device import HostDevice
from vexpress_trt.runtime.cuda.loop import DeviceLoop
from vexpress_trt.runtime.cuda.schedule import Schedule
from vexpress_trt.runtime.latent_store import LatentStore
from vexpress_trt.runtime.noise import frame_noise
from vexpress_trt.runtime.scheduler import SOLVERS, make_scheduler
from vexpress_trt.runtime.windows import Call, WindowPlan, batches, live_windows

SHAPE = (4, 1, 3)


class Predicting(DeviceEngine):
    """A denoiser on arrays: predicts from all of its inputs; `halves` as of a guided graph or one without guidance."""

    def __init__(self, device: HostDevice, halves: int, window: int) -> None:
        outputs = (TensorSpec("prediction", "float32", ("B", halves, "F", 4, "h", "w")),)
        name = "denoiser_guided" if halves == 2 else "denoiser_single"
        self.spec = SimpleNamespace(name=name, inputs=denoiser_inputs("float16"), outputs=outputs)
        self.cancelled = False
        self.captured = self.replayed = 0
        self._device = device
        self._window = window

    def bind_buffers(self, **buffers: np.ndarray) -> None:
        self._buffers = buffers

    def enqueue(self, stream: int) -> None:
        if isinstance(self._device, UnsteadyDevice):
            self._device.enqueue(stream, self.predict)
        else:
            self.predict()

    def predict(self) -> None:
        self._buffers["prediction"][...] = predicted(self.spec.outputs[0].shape[1], **{
            name: array for name, array in self._buffers.items() if name != "prediction"
        })  # fmt: skip

    def capture(self, stream: int, body: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            body()

        return replay


def predicted(
    halves: int, latents: np.ndarray, timestep: np.ndarray, tokens: np.ndarray, kps_feature: np.ndarray
) -> np.ndarray:
    """[B, halves, F, 4, h, w] float32, other for every frame, window, step and half."""
    known = tokens.astype(np.float32).mean(axis=(2, 3)) + kps_feature.astype(np.float32).mean(axis=(2, 3, 4))
    place = np.arange(latents.shape[1], dtype=np.float32) * np.float32(0.1)
    angle = (timestep / np.float32(999))[:, None] + known + place
    mixed = latents + np.roll(latents, 1, axis=1) * np.float32(0.3) + angle[..., None, None, None]
    return np.stack([np.sin(mixed * np.float32(1.7 - half)) for half in range(halves)], axis=1).astype(np.float32)


def fill(start: int, noise: np.ndarray, tokens: np.ndarray, features: np.ndarray) -> None:
    """What frames start from."""
    for row, frame in enumerate(range(start, start + len(noise))):
        noise[row] = frame_noise(7, frame, SHAPE)
        tokens[row] = np.sin(frame)
        features[row] = np.cos(frame * 0.7)


def on_cpu(
    plan: WindowPlan,
    steps: int,
    groups: list[list[Call]],
    *,
    solver: str,
    guidance: float,
    guided: Callable[[int], bool],
) -> np.ndarray:
    """Final latents by the latent store, in the precision the device has its inputs in."""
    store = LatentStore(
        plan, make_scheduler(SchedulerConfig(), steps, solver), lambda frame: frame_noise(7, frame, SHAPE), SHAPE,
        guidance_scale=guidance,
    )  # fmt: skip
    scheduler, final = make_scheduler(SchedulerConfig(), steps, solver), []
    for window, step in (call for group in groups for call in group):
        latents = np.empty((1, plan.window, *SHAPE), np.float32)
        store.gather(window, step, latents[0])
        rows = [np.empty((1, plan.window, *of), np.float16) for of in ((5, 3), (2, *SHAPE[1:]))]
        fill(window * plan.stride, np.empty_like(latents[0]), rows[0][0], rows[1][0])
        timestep = np.array([scheduler.timesteps[step]], np.float32)
        store.scatter(window, step, predicted(1 + guided(step), latents, timestep, *rows)[0])
        final += [latent for _, latent in store.pop_final()]
    return np.stack(final)


def on_device(
    device: HostDevice, plan: WindowPlan, steps: int, groups: list[list[Call]], *, batch: int, live: int, solver: str,
    guidance: float, guided: Callable[[int], bool], capture: bool = True, source: Callable = fill,
) -> tuple[np.ndarray, list[Predicting]]:  # fmt: skip
    """Final latents by the loop, and its two denoisers."""
    engines = [Predicting(device, halves, plan.window) for halves in (1, 2)]
    scheduler = make_scheduler(SchedulerConfig(), steps, solver)
    with DeviceLoop(
        device, lambda step: engines[guided(step)], plan=plan, scheduler=scheduler,
        shape=SHAPE, guidance_scale=guidance, live_windows=live, window_batch=batch, capture=capture,
    ) as loop:  # fmt: skip
        results = list(loop.run(groups, source))
    assert [call for calls, _ in results for call in calls] == [call for group in groups for call in group]
    frames = [frame for _, frames in results for frame in frames]
    assert [index for index, _ in frames] == list(range(plan.frames))
    return np.stack([latent for _, latent in frames]), engines


@st.composite
def jobs(draw: st.DrawFn) -> SimpleNamespace:
    """A plan, an order that it allows, and settings."""
    window = draw(st.integers(1, 7))
    plan = WindowPlan(window, draw(st.integers(0, window - 1)), draw(st.integers(1, 9)))
    steps, batch = draw(st.integers(1, 5)), draw(st.sampled_from([1, 1, 2, 3]))
    low, high = sorted(draw(st.tuples(st.integers(0, steps), st.integers(0, steps))))
    in_wavefront = draw(st.booleans()) or batch > 1
    return SimpleNamespace(
        plan=plan,
        steps=steps,
        groups=list(batches(plan, steps, batch)) if in_wavefront else [[call] for call in joint_order(plan, steps)],
        settings={"solver": draw(st.sampled_from(SOLVERS)), "guidance": draw(st.floats(1.125, 9, width=32)),
                  "guided": lambda step: low <= step < high},
        sizes={"batch": batch, "live": live_windows(plan, steps, batch) if in_wavefront else plan.windows},
    )  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(job=jobs())
def test_it_equals_the_latent_store_bit_for_bit(job: SimpleNamespace) -> None:
    expected = on_cpu(job.plan, job.steps, job.groups, **job.settings)
    found, _ = on_device(HostDevice(), job.plan, job.steps, job.groups, **job.settings, **job.sizes)
    assert (found == expected).all()


@settings(deadline=None, max_examples=150)
@given(job=jobs(), seed=st.integers(0, 2**32), piece=st.sampled_from([loop_module.AHEAD, 11, 256]))
def test_it_does_so_however_the_streams_interleave(job: SimpleNamespace, seed: int, piece: int) -> None:
    """Also when tables come in short pieces. Every order of the queued work is one that a GPU might choose."""
    expected = on_cpu(job.plan, job.steps, job.groups, **job.settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buffers, "PIECE", piece)
        patch.setattr("vexpress_trt.runtime.cuda.running.POLL_SECONDS", 0.0)
        found, _ = on_device(UnsteadyDevice(seed), job.plan, job.steps, job.groups, **job.settings, **job.sizes)
    assert (found == expected).all()


PLAN = WindowPlan(6, 2, 5)
GROUPS = list(batches(PLAN, 4, 1))
SETTINGS = {"batch": 1, "live": live_windows(PLAN, 4), "solver": "ddim", "guidance": 2.0}


def test_each_denoiser_is_captured_once_when_both_have_run_and_replayed_ever_after() -> None:
    latents, (single, guided) = on_device(HostDevice(), PLAN, 4, GROUPS, guided=lambda step: step < 3, **SETTINGS)
    steps = [step for ((_, step),) in GROUPS]
    alone = steps.index(3)  # calls before the first without guidance
    assert alone > 1
    assert (single.captured, single.replayed) == (1, PLAN.windows - 1)
    assert (guided.captured, guided.replayed) == (1, 3 * PLAN.windows - alone)
    eager, engines = on_device(HostDevice(), PLAN, 4, GROUPS, guided=lambda step: step < 3, capture=False, **SETTINGS)
    assert not any(engine.captured for engine in engines)
    assert (latents == eager).all()


@pytest.mark.parametrize("frame", [0, 9, PLAN.frames - 1])
@pytest.mark.parametrize("piece", [8, 256])
def test_a_prediction_that_is_not_finite_names_graph_window_and_step(
    frame: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def source(start: int, noise: np.ndarray, tokens: np.ndarray, features: np.ndarray) -> None:
        fill(start, noise, tokens, features)
        if start <= frame < start + len(noise):
            features[frame - start] = np.inf

    monkeypatch.setattr(buffers, "PIECE", piece)
    window = PLAN.containing(frame).start
    with pytest.raises(UserError, match=f"denoiser_guided produced non-finite values .*window {window}, step 0"):
        on_device(HostDevice(), PLAN, 4, GROUPS, guided=lambda step: True, source=source, **SETTINGS)


def test_a_cancelled_engine_ends_it() -> None:
    device = UnsteadyDevice(0)
    engine = Predicting(device, 2, PLAN.window)
    with DeviceLoop(
        device, lambda step: engine, plan=PLAN, scheduler=make_scheduler(SchedulerConfig(), 4), shape=SHAPE,
        guidance_scale=2.0, live_windows=5,
    ) as loop:  # fmt: skip
        results = loop.run(GROUPS, fill)
        next(results)
        engine.cancelled = True
        with pytest.raises(CancelledError, match="denoiser_guided was cancelled"):
            list(results)


def test_memory_does_not_grow_with_the_clip() -> None:
    class Counting(HostDevice):
        def arena(self, shapes):
            self.bytes = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
            return super().arena(shapes)

    sizes = []
    for windows in (30, 3000):
        plan, device = WindowPlan(6, 2, windows), Counting()
        engine = Predicting(device, 2, plan.window)
        DeviceLoop(
            device, lambda step, engine=engine: engine, plan=plan, scheduler=make_scheduler(SchedulerConfig(), 4),
            shape=SHAPE, guidance_scale=2.0, live_windows=live_windows(plan, 4),
        ).close()  # fmt: skip
        sizes.append(device.bytes)
    assert sizes[0] == sizes[1]


def test_an_order_that_is_not_allowed_is_an_error() -> None:
    plan = WindowPlan(4, 2, 3)
    schedule = Schedule(plan, make_scheduler(SchedulerConfig(), 2), slots=plan.frames)
    with pytest.raises(ValueError, match="frame 2 is not at step 1"):
        list(schedule.batches([[(0, 0)], [(0, 1)]]))
    few = Schedule(plan, make_scheduler(SchedulerConfig(), 2), slots=4)
    with pytest.raises(ValueError, match="frame 4 is not at step 0"):
        list(few.batches([[(0, 0)], [(1, 0)]]))
