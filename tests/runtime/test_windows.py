"""Window plans, and orders of (window, step) that respect what depends on what."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joint_order import joint_order

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.windows import (
    WindowPlan,
    batches,
    latency_order,
    live_windows,
    throughput_fronts,
)

Calls = Iterable[tuple[int, int]]
ORDERS: dict[str, Callable[[WindowPlan, int], Calls]] = {
    "joint": joint_order,
    "latency": latency_order,
    "throughput": lambda plan, steps: (call for front in throughput_fronts(plan, steps) for call in front),
}


@st.composite
def plans(draw: st.DrawFn) -> WindowPlan:
    window = draw(st.integers(1, 12))
    return WindowPlan(window, draw(st.integers(0, window - 1)), draw(st.integers(1, 12)))


def _live(calls: Calls, steps: int) -> int:
    """The most windows that have begun and not ended at one time."""
    live, most = set(), 0
    for window, step in calls:
        live.add(window)
        most = max(most, len(live))
        if step == steps - 1:
            live.remove(window)
    return most


@pytest.mark.parametrize("order", ORDERS)
@given(plan=plans(), steps=st.integers(1, 8))
def test_every_call_once_and_after_what_it_needs(order: str, plan: WindowPlan, steps: int) -> None:
    done: set[tuple[int, int]] = set()
    for window, step in ORDERS[order](plan, steps):
        assert (window, step) not in done
        start, stop = plan.span(window)
        for other in range(plan.windows):
            shares = max(start, plan.span(other)[0]) < min(stop, plan.span(other)[1])
            if shares and step > 0:
                assert (other, step - 1) in done
        done.add((window, step))
    assert len(done) == plan.windows * steps


@given(plan=plans(), steps=st.integers(1, 8))
def test_throughput_fronts_hold_only_independent_calls(plan: WindowPlan, steps: int) -> None:
    done: set[tuple[int, int]] = set()
    for front in throughput_fronts(plan, steps):
        for window, step in front:
            for other in range(max(0, window - plan.reach), min(plan.windows, window + plan.reach + 1)):
                assert step == 0 or (other, step - 1) in done
        done.update(front)


@given(plan=plans(), steps=st.integers(1, 8))
def test_latency_order_finishes_windows_as_early_as_can_be(plan: WindowPlan, steps: int) -> None:
    calls = list(latency_order(plan, steps))
    for target in range(plan.windows):
        needed = {(target, steps - 1)}
        for step in reversed(range(steps - 1)):
            after = {window for window, later in needed if later == step + 1}
            needed |= {
                (o, step) for w in after for o in range(w - plan.reach, w + plan.reach + 1) if 0 <= o < plan.windows
            }
        earlier = {call for other in range(target) for call in [(other, step) for step in range(steps)]}
        reachable = needed | {c for c in calls[: calls.index((target, steps - 1))] if c in earlier}
        before = calls[: calls.index((target, steps - 1)) + 1]
        if target == 0:
            assert set(before) == needed
        assert needed <= set(before)
        assert reachable <= set(before)


@pytest.mark.parametrize(("steps", "calls"), [(25, 325), (8, 36)])
def test_call_counts_of_upstreams_windows(steps: int, calls: int) -> None:
    plan = WindowPlan(24, 4, 200)
    order = list(latency_order(plan, steps))
    finals = [index + 1 for index, (_, step) in enumerate(order) if step == steps - 1]
    assert plan.reach == 1
    assert finals[0] == calls == steps + steps * (steps - 1) // 2
    assert all(later - earlier == steps for earlier, later in zip(finals[: 200 - steps], finals[1:], strict=False))


@pytest.mark.parametrize(("window", "overlap", "reach"), [(24, 0, 0), (24, 12, 1), (24, 13, 2), (12, 8, 2), (10, 8, 4)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_call_counts_grow_with_the_reach(window: int, overlap: int, reach: int, steps: int) -> None:
    plan = WindowPlan(window, overlap, reach * steps + 5)
    finals = [index + 1 for index, (_, step) in enumerate(latency_order(plan, steps)) if step == steps - 1]
    assert plan.reach == reach
    assert finals[0] == steps + reach * steps * (steps - 1) // 2
    assert finals[1] == finals[0] + steps


@given(plan=plans(), steps=st.integers(1, 8))
def test_live_windows_are_bounded_however_long_the_clip(plan: WindowPlan, steps: int) -> None:
    reach = plan.reach
    assert _live(latency_order(plan, steps), steps) <= live_windows(plan, steps) <= 1 + reach * (steps - 1)
    fronts = _live(ORDERS["throughput"](plan, steps), steps)
    assert fronts <= live_windows(plan, steps, batch=2) <= 1 + (reach + 1) * (steps - 1)


@given(plan=plans(), steps=st.integers(1, 8), batch=st.integers(1, 5))
def test_batches_hold_every_call_once_and_never_more_than_fit(plan: WindowPlan, steps: int, batch: int) -> None:
    lists = list(batches(plan, steps, batch))
    assert all(1 <= len(calls) <= batch for calls in lists)
    assert sorted(call for calls in lists for call in calls) == sorted(joint_order(plan, steps))


@given(plan=plans(), frame=st.integers(0, 500))
def test_windows_containing_a_frame(plan: WindowPlan, frame: int) -> None:
    frame %= plan.frames
    expected = [w for w in range(plan.windows) if plan.span(w)[0] <= frame < plan.span(w)[1]]
    assert list(plan.containing(frame)) == expected
    assert expected


@given(length=st.integers(1, 300), window=st.integers(1, 32), data=st.data())
def test_a_covering_plan_covers_with_no_window_to_spare(length: int, window: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    plan = WindowPlan.covering(length, window, overlap)
    assert plan.frames >= length
    assert plan.windows == 1 or WindowPlan(window, overlap, plan.windows - 1).frames < length


def test_tiled_plans_are_the_oracles(golden_dir: Path) -> None:
    cases = json.loads((golden_dir / "helpers" / "contexts.json").read_text())["exact"]
    assert len(cases) > 50
    for case in cases:
        arguments = case["init_video_length"], 1.0, case["context_frames"], case["overlap"]
        if "error" in case:
            with pytest.raises(UserError, match="fewer than one window"):
                WindowPlan.tiled(*arguments)
            continue
        plan = WindowPlan.tiled(*arguments)
        spans = [[start, stop - 1] for start, stop in map(plan.span, range(plan.windows))]
        assert (plan.windows, plan.frames, spans) == (
            case["num_context"], case["video_length"], case["context_indices"],
        )  # fmt: skip


def test_tiled_plans_floor_the_audio() -> None:
    assert WindowPlan.tiled(1.025, 30.0, 12, 4).frames == 28
    assert WindowPlan.tiled(0.667, 30.0, 12, 4).frames == 20
    assert WindowPlan.tiled(0.666, 30.0, 12, 4).frames == 12


@pytest.mark.parametrize("numbers", [(4, 4, 1), (4, -1, 1), (4, 0, 0), (0, 0, 1)])
def test_impossible_plans_are_errors(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no plan"):
        WindowPlan(*numbers)
