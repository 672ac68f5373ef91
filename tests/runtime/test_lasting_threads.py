"""Threads that stay: work of a kind finds the thread that did such before, never one that is busy; nothing is kept."""

import gc
import multiprocessing
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from vexpress_trt.runtime import lasting_threads


class Work:
    """Remembers the thread it was done on; goes on until it is let go."""

    def __init__(self, kind: str, *, held: bool = False) -> None:
        self.thread: threading.Thread | None = None
        self.begun, self.go, self.ended = threading.Event(), threading.Event(), threading.Event()
        if not held:
            self.go.set()
        lasting_threads.start(kind, self.do, self.ended.set)

    def do(self) -> None:
        self.thread = threading.current_thread()
        self.begun.set()
        assert self.go.wait(30)


def thread_of(kind: str) -> threading.Thread:
    work = Work(kind)
    assert work.ended.wait(30)
    return work.thread


def test_work_of_one_kind_is_done_on_one_thread() -> None:
    assert len({thread_of("one kind") for _ in range(20)}) == 1


def test_kinds_have_threads_of_their_own() -> None:
    first, other = thread_of("first kind"), thread_of("other kind")
    assert first is not other
    assert thread_of("first kind") is first and first.name == "first kind"


def test_a_busy_thread_gets_no_more_work() -> None:
    works = [Work("busy", held=True) for _ in range(3)]
    for work in works:
        assert work.begun.wait(30)
    threads = {work.thread for work in works}
    assert len(threads) == 3
    for work in works:
        work.go.set()
        assert work.ended.wait(30)
    assert {thread_of("busy") for _ in range(5)} <= threads


def test_a_thread_that_waits_keeps_nothing_of_its_last_work() -> None:
    class Heavy:
        pass

    def start(heavy: Heavy) -> Callable[[], bool]:
        ended = threading.Event()
        lasting_threads.start("light", lambda: str(heavy) and None, ended.set)
        return lambda: ended.wait(30)

    heavy = Heavy()
    gone = weakref.ref(heavy)
    assert start(heavy)()
    del heavy
    deadline = time.monotonic() + 10  # it has yet to go back to waiting
    while gone() is not None and time.monotonic() < deadline:
        time.sleep(0.001)
        gc.collect()
    assert gone() is None


def test_a_thread_whose_work_raises_ends_and_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, ended = [], threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda raised: seen.append(raised.exc_type))

    def failing() -> None:
        raise ZeroDivisionError

    before = thread_of("failing")
    lasting_threads.start("failing", failing, ended.set)
    assert ended.wait(30)
    before.join(30)
    assert seen == [ZeroDivisionError] and not before.is_alive()
    assert thread_of("failing") is not before


def _in_a_child(connection) -> None:
    connection.send(thread_of("forked").name)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_the_child_of_a_fork_starts_threads_of_its_own() -> None:
    thread_of("forked")
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_a_child, args=(theirs,), daemon=True)
    child.start()
    assert ours.poll(30) and ours.recv() == "forked"
    child.join(30)
