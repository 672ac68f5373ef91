"""A build beside the main thread, which so can take Ctrl-C: the first one stops the build, a second one everything."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, TypeVar

_POLL_SECONDS = 0.2
_START_SECONDS = 5  # that a thread takes at most to begin
Result = TypeVar("Result")


def in_thread(work: Callable[[], Result], context: AbstractContextManager[Any], stop: Callable[[], None]) -> Result:
    """What `work` returns or raises, in a thread of its own with `context` entered there.

    An interruption calls `stop` and waits for the end of `work`, however long that takes, unless a second one comes:
    that ends the process at once. The end is awaited by an event: a `Thread.join` that Ctrl-C interrupts takes the
    thread for ended in Python 3.11, and one that interrupts `Thread.start` leaves a thread that runs or will.
    """
    outcome: list[Any] = []
    begun, ended = threading.Event(), threading.Event()

    def run() -> None:
        begun.set()
        try:
            with context:
                outcome.append(work())
        except BaseException as problem:  # noqa: BLE001 - raised again in the waiting thread
            outcome.append(problem)
        finally:
            ended.set()

    try:
        threading.Thread(target=run, name="tensorrt-build").start()
        while not ended.wait(_POLL_SECONDS):
            pass
    except BaseException:
        with _next_signal_ends_the_process():
            stop()
            if begun.wait(_START_SECONDS):
                ended.wait()
        raise
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


@contextmanager
def _next_signal_ends_the_process() -> Iterator[None]:
    """Ctrl-C and SIGTERM end it without any clearing up: a build leaves files only when it is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
