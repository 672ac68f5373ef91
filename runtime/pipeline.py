"""Stages on threads of their own, joined by bounded queues; stopped together, whatever ends them."""

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from vexpress_trt.runtime import lasting_threads

Item = TypeVar("Item")
POLL_SECONDS = 0.5


class Pipeline:
    """Runs iterators on threads, each a bounded number of items ahead of whoever takes from it.

    Use as a context manager. When the block ends, by an exception, Ctrl-C or in good order, every thread is told to
    stop, `cancel` is called so that work in progress ends early, and all of it has ended before the block is left. The
    threads themselves stay for the next pipeline (`lasting_threads`). An exception in one stage is raised, as it is,
    where its items are taken, and so passes down to the block. A block that is still open when the process ends, in a
    generator that somebody holds, is stopped then: native code on a thread must not outlive the interpreter.
    """

    def __init__(self, cancel: Callable[[], None] = lambda: None) -> None:
        self._cancel = cancel
        self._process = os.getpid()
        self._changed = threading.Condition()
        self._stopping = False
        self._running = 0

    def behind(self, items: Iterable[Item], *, ahead: int, kind: str) -> Iterator[Item]:
        """The same items, made from now on by a thread that makes such of this `kind`; at most `ahead` of them wait to
        be taken."""
        queue: deque[tuple[Any, BaseException | None]] = deque()
        lasting_threads.start(kind, lambda: self._work(queue, items, ahead), self._ended)
        return self._taken(queue)

    def _work(self, queue: deque, items: Iterable[Item], ahead: int) -> None:
        with self._changed:
            self._running += 1
            late = self._stopping  # the block may have been left already
        self._fill(queue, () if late else items, ahead)

    def _ended(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def _fill(self, queue: deque, items: Iterable[Item], ahead: int) -> None:
        end: BaseException = _End()
        try:
            try:
                for item in items:
                    if not self._put(queue, (item, None), ahead):
                        break
            finally:
                close = getattr(items, "close", None)  # a generator cleans up on the thread that ran it
                if close is not None:
                    close()
        except BaseException as problem:
            end = problem
        try:
            self._put(queue, (None, end), ahead)
        finally:
            del end  # its traceback has this frame

    def _put(self, queue: deque, entry: tuple[Any, BaseException | None], ahead: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or len(queue) < ahead)
            if self._stopping:
                return False
            queue.append(entry)
            self._changed.notify_all()
            return True

    def _taken(self, queue: deque) -> Iterator[Any]:
        while True:
            with self._changed:
                while not self._changed.wait_for(lambda: self._stopping or queue, POLL_SECONDS):
                    pass  # a signal that another thread received is handled here, on the main one
                if self._stopping:
                    raise _Stopped
                item, end = queue.popleft()
                self._changed.notify_all()
            if isinstance(end, _End):
                return
            try:
                if end is not None:
                    raise end
            finally:
                del end  # its traceback has this frame
            yield item

    def __enter__(self) -> Self:
        atexit.register(self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        atexit.unregister(self._stop)
        self._stop()

    def _stop(self) -> None:
        if os.getpid() != self._process:  # the child of a fork has none of the threads
            return
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._cancel()
        with self._changed:  # not `Thread.join`: one that Ctrl-C interrupts takes the thread for ended in Python 3.11
            self._changed.wait_for(lambda: self._running == 0)


class _End(Exception):
    """Marks the end of a queue."""


class _Stopped(Exception):
    """Ends a stage whose pipeline stops; nobody sees it."""
