"""Work beside the main thread: what interrupts the waiting one stops the work and waits for its end."""

import threading
import time
from contextlib import nullcontext

import pytest

from vexpress_trt.engines.trt.interruption import in_thread


def test_what_the_work_returns_or_raises_comes_back() -> None:
    assert in_thread(lambda: threading.current_thread().name, nullcontext(), list) == "tensorrt-build"
    with pytest.raises(ZeroDivisionError):
        in_thread(lambda: 1 / 0, nullcontext(), list)


@pytest.mark.parametrize("delay", [0.0, 0.2])
def test_an_interruption_while_the_thread_starts_stops_its_work_as_well(
    monkeypatch: pytest.MonkeyPatch, delay: float
) -> None:
    cancelled, ended = threading.Event(), threading.Event()

    def work() -> None:
        cancelled.wait(10)
        ended.set()

    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        time.sleep(delay)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        in_thread(work, nullcontext(), cancelled.set)
    assert cancelled.is_set() and ended.is_set()


def test_an_interruption_before_there_is_a_thread_waits_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    monkeypatch.setattr("vexpress_trt.engines.trt.interruption._START_SECONDS", 0.1)
    stopped = threading.Event()
    with pytest.raises(KeyboardInterrupt):
        in_thread(lambda: None, nullcontext(), stopped.set)
    assert stopped.is_set()
