"""Stages on threads: the same items in order, never far ahead, one cause of failure, and no work left behind."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from vexpress_trt.runtime import lasting_threads
from vexpress_trt.runtime.pipeline import Pipeline


@pytest.fixture(autouse=True)
def nothing_left_at_work(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    start, at_work = lasting_threads.start, []

    def watched(kind: str, work: Callable[[], None], ended: Callable[[], None]) -> None:
        def end() -> None:
            at_work.remove(work)
            ended()

        at_work.append(work)
        start(kind, work, end)

    monkeypatch.setattr(lasting_threads, "start", watched)
    yield
    assert at_work == []


def counting(stop: int, made: list[int] | None = None) -> Iterator[int]:
    for number in range(stop):
        if made is not None:
            made.append(number)
        yield number


def test_the_same_items_in_the_same_order_through_many_stages() -> None:
    with Pipeline() as pipeline:
        items = pipeline.behind(counting(200), ahead=2, kind="test")
        items = pipeline.behind((item + 1 for item in items), ahead=1, kind="test")
        items = pipeline.behind((item * 2 for item in items), ahead=3, kind="test")
        assert list(items) == [2 * (number + 1) for number in range(200)]


def test_an_empty_stage_ends_at_once() -> None:
    with Pipeline() as pipeline:
        assert list(pipeline.behind([], ahead=1, kind="test")) == []


def test_a_stage_works_ahead_but_never_further_than_asked() -> None:
    made: list[int] = []
    with Pipeline() as pipeline:
        items = pipeline.behind(counting(100, made), ahead=3, kind="test")
        for taken, _ in enumerate(items, 1):
            limit = taken + 3 + 1  # three wait, one is in the hand that waits to put it down
            deadline = time.monotonic() + 5
            while len(made) < min(limit, 100) and time.monotonic() < deadline:
                time.sleep(0.001)
            assert len(made) == min(limit, 100)


@pytest.mark.parametrize("stages", [1, 3])
def test_the_cause_of_a_failure_is_what_the_block_sees(stages: int) -> None:
    cause = ValueError("no such frame")

    def failing() -> Iterator[int]:
        yield 1
        raise cause

    taken = []
    with pytest.raises(ValueError) as caught, Pipeline() as pipeline:
        items = failing()
        for _ in range(stages):
            items = pipeline.behind(items, ahead=2, kind="test")
        for item in items:
            taken.append(item)
    assert caught.value is cause
    assert taken == [1]


@pytest.mark.parametrize("stages", [1, 2])
def test_what_a_failed_stage_held_is_free_without_the_garbage_collector(stages: int) -> None:
    class Heavy:
        pass

    gone: list[weakref.ref] = []

    def failing() -> Iterator[int]:
        heavy = Heavy()
        gone.append(weakref.ref(heavy))
        yield 1
        raise ValueError(str(heavy))

    def fail() -> None:
        with pytest.raises(ValueError), Pipeline() as pipeline:
            items = failing()
            for _ in range(stages):
                items = pipeline.behind(items, ahead=1, kind="test")
            list(items)

    gc.collect()
    gc.disable()
    try:
        fail()
        deadline = time.monotonic() + 10  # its thread has yet to go back to waiting
        while gone[0]() is not None and time.monotonic() < deadline:
            time.sleep(0.001)
        assert gone[0]() is None
    finally:
        gc.enable()


def test_leaving_the_block_stops_a_stage_that_waits_and_one_that_works() -> None:
    interrupted, cleaned = threading.Event(), []

    def working() -> Iterator[int]:
        try:
            yield 1
            assert interrupted.wait(30), "cancel was not called"
            yield 2
        finally:
            cleaned.append(threading.current_thread())

    with Pipeline(cancel=interrupted.set) as pipeline:
        items = pipeline.behind(working(), ahead=1, kind="test")
        items = pipeline.behind(items, ahead=1, kind="test")
        assert next(items) == 1
    assert cleaned and cleaned[0] is not threading.main_thread()


def test_a_stage_that_had_not_begun_when_the_block_was_left_makes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    late: list[Callable[[], None]] = []
    monkeypatch.setattr(lasting_threads, "start", lambda kind, work, ended: late.extend((work, ended)))
    made: list[int] = []
    with Pipeline() as pipeline:
        pipeline.behind(counting(3, made), ahead=1, kind="test")
    for step in late:
        step()
    assert made == []


def test_ctrl_c_reaches_a_block_that_waits_for_its_first_item() -> None:
    interrupted = threading.Event()

    def slow() -> Iterator[int]:
        interrupted.wait(30)
        yield 1

    began = time.monotonic()
    threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt), Pipeline(cancel=interrupted.set) as pipeline:
        list(pipeline.behind(slow(), ahead=1, kind="test"))
    assert interrupted.is_set()
    assert time.monotonic() - began < 20


def test_a_block_that_is_open_when_the_process_ends_is_stopped_first() -> None:
    script = """
        from vexpress_trt.runtime.pipeline import Pipeline

        def working():
            try:
                while True:
                    yield 1
            finally:
                print("cleaned")

        def block():
            with Pipeline(cancel=lambda: print("cancelled")) as pipeline:
                yield from pipeline.behind(working(), ahead=1, kind="test")

        held = block()
        next(held)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "cancelled" in ended.stdout and "cleaned" in ended.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no process forks here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_child_of_a_fork_does_not_wait_for_its_parents_stages() -> None:
    with Pipeline() as pipeline:
        items = pipeline.behind(counting(10), ahead=1, kind="test")
        assert next(items) == 0
        child = os.fork()
        if child == 0:
            pipeline.__exit__(None, None, None)
            os._exit(0)
        deadline = time.monotonic() + 10
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        if ended == (0, 0):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert ended == (child, 0)
