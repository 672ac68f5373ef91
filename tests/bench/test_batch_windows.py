"""Bounds of what several devices could do with one clip."""

import pytest

from vexpress_trt.bench.batch_windows import bound, by_demand
from vexpress_trt.runtime.windows import WindowPlan, latency_order, live_windows


def test_one_device_takes_the_order_of_latency() -> None:
    plan = WindowPlan(24, 4, 9)
    rounds, first, live = by_demand(plan, 5, 1)
    assert [call for calls in rounds for call in calls] == list(latency_order(plan, 5))
    assert first == 5 + 5 * 4 // 2
    assert live == live_windows(plan, 5)


@pytest.mark.parametrize("overlap", [0, 4, 14])
def test_no_call_runs_before_what_it_needs_or_beside_it(overlap: int) -> None:
    plan, done = WindowPlan(24, overlap, 7), set()
    for calls in by_demand(plan, 4, 3)[0]:
        for window, step in calls:
            neighbours = range(max(0, window - plan.reach), min(plan.windows, window + plan.reach + 1))
            assert step == 0 or all((other, step - 1) in done for other in neighbours)
        done |= set(calls)
    assert len(done) == 7 * 4


def test_devices_are_busy_where_the_clip_is_long() -> None:
    row = bound(WindowPlan(24, 4, 90), steps=25, devices=4, seconds=60.0)
    assert row.speedup > 3.9
    assert 3.5 < row.speedup_by_fronts < row.speedup
