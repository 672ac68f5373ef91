"""Any order of windows and steps gives bit-identical latents, and only live frames are held."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_order import joint_order

from vexpress_trt.engines.manifest import SchedulerConfig
from vexpress_trt.runtime import _native
from vexpress_trt.runtime.latent_store import LatentStore
from vexpress_trt.runtime.noise import frame_noise
from vexpress_trt.runtime.scheduler import SOLVERS, make_scheduler
from vexpress_trt.runtime.windows import (
    WindowPlan,
    batches,
    latency_order,
    live_windows,
    throughput_fronts,
)

SHAPE = (4, 2, 3)
Calls = Iterable[tuple[int, int]]


def _predict(latents: np.ndarray, window: int, step: int) -> np.ndarray:
    """A stand-in for the network: nonlinear, different per window and step, mixing the window's frames."""
    mixed = latents + np.roll(latents, 1, axis=0) * np.float32(0.3)
    return np.sin(mixed * np.float32(1.7) + np.float32(window * 0.37 + step * 0.11)).astype(np.float32)


def _store(
    plan: WindowPlan, steps: int, noise: Callable[[int], np.ndarray] | None = None, solver: str = "ddim", **settings
) -> LatentStore:
    noise = noise or (lambda frame: frame_noise(1, frame, SHAPE))
    return LatentStore(plan, make_scheduler(SchedulerConfig(), steps, solver), noise, SHAPE, **settings)


def _gathered(store: LatentStore, plan: WindowPlan, window: int, step: int) -> np.ndarray:
    latents = np.full((plan.window, *SHAPE), np.nan, np.float32)
    store.gather(window, step, latents)
    return latents


def _run(
    plan: WindowPlan,
    steps: int,
    calls: Calls,
    watch: Callable[[LatentStore], None] = lambda store: None,
    solver: str = "ddim",
) -> np.ndarray:
    store = _store(plan, steps, solver=solver)
    final: list[tuple[int, np.ndarray]] = []
    for window, step in calls:
        assert store.scatter(window, step, _predict(_gathered(store, plan, window, step), window, step)[None])
        final += store.pop_final()
        watch(store)
    assert store.live_frames == 0
    assert [frame for frame, _ in final] == list(range(plan.frames))
    return np.stack([latent for _, latent in final])


def _plain(plan: WindowPlan, steps: int, solver: str = "ddim") -> np.ndarray:
    """Upstream's procedure over whole arrays: average all windows, then step all frames."""
    scheduler, original = make_scheduler(SchedulerConfig(), steps, solver), None
    latents = np.stack([frame_noise(1, frame, SHAPE) for frame in range(plan.frames)])
    count = np.zeros((plan.frames, 1, 1, 1), np.float32)
    for window in range(plan.windows):
        count[slice(*plan.span(window))] += 1
    for step in range(steps):
        total = np.zeros_like(latents)
        for window in range(plan.windows):
            part = slice(*plan.span(window))
            total[part] += _predict(latents[part], window, step) / count[part]
        weights = scheduler.weights(step)
        stepped = weights.sample * latents + weights.prediction * total
        if weights.history:
            stepped = stepped + weights.history * original
        original = weights.signal * latents - weights.noise * total
        latents = stepped
    return latents


@settings(deadline=None, max_examples=60)
@given(window=st.integers(1, 8), windows=st.integers(1, 8), steps=st.integers(1, 5), data=st.data())
def test_every_order_equals_the_plain_procedure_bit_for_bit(window: int, windows: int, steps: int, data) -> None:
    plan = WindowPlan(window, data.draw(st.integers(0, window - 1)), windows)
    solver = data.draw(st.sampled_from(SOLVERS))
    expected = _plain(plan, steps, solver)
    fronts = [call for front in throughput_fronts(plan, steps) for call in data.draw(st.permutations(front))]
    for calls in (joint_order(plan, steps), latency_order(plan, steps), fronts):
        assert (_run(plan, steps, calls, solver=solver) == expected).all()


@settings(deadline=None, max_examples=60)
@given(window=st.integers(2, 8), windows=st.integers(2, 8), steps=st.integers(1, 4), data=st.data())
def test_any_valid_order_at_all_equals_it_too(window: int, windows: int, steps: int, data: st.DataObject) -> None:
    """Also where a later window's prediction of a frame comes before an earlier window's."""
    plan = WindowPlan(window, data.draw(st.integers(1, window - 1)), windows)
    done = [0] * windows  # steps of each window
    calls = []
    while len(calls) < windows * steps:
        neighbours = [done[max(0, w - plan.reach) : w + plan.reach + 1] for w in range(windows)]
        ready = [w for w in range(windows) if done[w] < steps and min(neighbours[w]) >= done[w]]
        chosen = data.draw(st.sampled_from(ready[::-1]))
        calls.append((chosen, done[chosen]))
        done[chosen] += 1
    assert (_run(plan, steps, calls) == _plain(plan, steps)).all()


@settings(deadline=None, max_examples=60)
@given(window=st.integers(1, 8), windows=st.integers(1, 12), steps=st.integers(1, 5), data=st.data())
def test_the_bound_on_live_windows_is_room_enough(window: int, windows: int, steps: int, data: st.DataObject) -> None:
    plan = WindowPlan(window, data.draw(st.integers(0, window - 1)), windows)
    expected = _plain(plan, steps)
    for batch in (1, 3):
        store = _store(plan, steps, live_windows=live_windows(plan, steps, batch))
        final = []
        for calls in batches(plan, steps, batch):
            gathered = [_gathered(store, plan, *call) for call in calls]
            for call, latents in zip(calls, gathered, strict=True):
                store.scatter(*call, _predict(latents, *call)[None])
            final += [latent for _, latent in store.pop_final()]
        assert (np.stack(final) == expected).all()


@settings(deadline=None, max_examples=30)
@given(st.floats(1.125, 10, width=32), st.integers(1, 9), st.integers(0, 3))
def test_guidance_is_taken_in_the_same_pass(guidance: float, window: int, step: int) -> None:
    plan, random = WindowPlan(window, 0, 1), np.random.default_rng(window)
    predictions = random.normal(size=(4, 2, window, *SHAPE)).astype(np.float32)
    guided = _store(plan, 4, guidance_scale=guidance)
    single = _store(plan, 4)
    for at, (unconditional, conditional) in enumerate(predictions):
        guided.scatter(0, at, predictions[at])
        single.scatter(0, at, (unconditional + np.float32(guidance) * (conditional - unconditional))[None])
    for (_, one), (_, other) in zip(guided.pop_final(), single.pop_final(), strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("half", [0, 1])
def test_a_prediction_that_is_not_finite_is_noticed(value: float, half: int) -> None:
    prediction = np.zeros((2, 4, *SHAPE), np.float32)
    prediction[half, 2, 1, 1, 1] = value
    assert not _store(WindowPlan(4, 2, 2), 2, guidance_scale=2.0).scatter(0, 0, prediction)


def test_memory_does_not_grow_with_the_clip() -> None:
    def most_live(windows: int) -> int:
        live = []
        plan = WindowPlan(6, 2, windows)
        _run(plan, 4, latency_order(plan, 4), lambda store: live.append(store.live_frames))
        return max(live)

    assert most_live(60) == most_live(20) <= (1 + 3) * 4 + 6


def test_noise_is_drawn_once_per_frame() -> None:
    asked = []

    def noise(frame: int) -> np.ndarray:
        asked.append(frame)
        return np.zeros(SHAPE, np.float32)

    plan = WindowPlan(4, 2, 3)
    store = _store(plan, 2, noise)
    for window, step in latency_order(plan, 2):
        store.scatter(window, step, _gathered(store, plan, window, step)[None])
    assert sorted(asked) == list(range(plan.frames))


def test_calls_out_of_order_are_errors() -> None:
    plan = WindowPlan(4, 2, 3)
    store = _store(plan, 1, live_windows=2)
    with pytest.raises(ValueError, match="frame 0 is at step 0, not at step 1"):
        _gathered(store, plan, 0, 1)
    with pytest.raises(ValueError, match="frame 6 is out of reach of frame 0, not at step 0"):
        _gathered(store, plan, 2, 0)
    store.scatter(0, 0, _gathered(store, plan, 0, 0)[None])
    store.pop_final()
    with pytest.raises(ValueError, match="frame 0 is final, not at step 0"):
        _gathered(store, plan, 0, 0)


def test_the_native_step_refuses_what_does_not_fit() -> None:
    prediction, samples = np.zeros((1, 2, 6), np.float32), np.zeros((2, 6), np.float32)
    pending, places = np.zeros((2, 1, 6), np.float32), np.array([[0, 1, 0, 1], [1, 1, 0, 1]], np.int32)
    step, history = np.ones(5, np.float32), np.zeros((2, 6), np.float32)
    assert _native.step_window(prediction, samples, pending, places, 1.0, step, history) == -1
    with pytest.raises(ValueError, match="history and samples differ"):
        _native.step_window(prediction, samples, pending, places, 1.0, step, history[:1])
    for bad in ([2, 1, 0, 1], [-1, 1, 0, 1], [0, 2, 0, 1], [0, 1, 1, 1], [0, 1, -1, 1]):
        with pytest.raises(ValueError, match="slot or window"):
            _native.step_window(prediction, samples, pending, np.array([bad, bad], np.int32), 1.0, step)
    with pytest.raises(ValueError, match="frames differ in number"):
        _native.step_window(prediction, samples, pending, places[:1], 1.0, step)
    with pytest.raises(ValueError, match="differ in shape"):
        _native.step_window(prediction, samples[:, :5].copy(), pending, places, 1.0, step)
    with pytest.raises(ValueError, match="one half nor two"):
        _native.step_window(np.zeros((3, 2, 6), np.float32), samples, pending, places, 1.0, step)
