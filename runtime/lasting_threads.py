"""Threads that outlast the work they were started for, and do the next of its kind.

Libraries keep things for every thread that calls them: PyTorch its plans of cuDNN's convolutions and attentions, of
which the latter are never freed, OpenMP a team of threads. A server whose clips brought new threads would make them
anew for each clip, and grow.
"""

import os
import threading
from collections import defaultdict
from collections.abc import Callable
from queue import SimpleQueue

Task = tuple[Callable[[], None], Callable[[], None]]
_lock = threading.Lock()
_idle: dict[str, list[SimpleQueue[Task]]] = defaultdict(list)


def start(kind: str, work: Callable[[], None], ended: Callable[[], None]) -> None:
    """Do `work` on an idle thread that has done work of this kind, or else on a new one.

    `ended` is called there when the thread is free for the next work. One whose work raises ends with it.
    """
    with _lock:
        tasks = _idle[kind].pop() if _idle[kind] else None
    if tasks is None:
        tasks = SimpleQueue()
        threading.Thread(target=_serve, args=(kind, tasks), name=kind, daemon=True).start()
    tasks.put((work, ended))


def _serve(kind: str, tasks: SimpleQueue[Task]) -> None:
    while True:
        _do(kind, tasks, *tasks.get())  # in a function of its own: while it waits nothing of the last work is kept


def _do(kind: str, tasks: SimpleQueue[Task], work: Callable[[], None], ended: Callable[[], None]) -> None:
    try:
        work()
        with _lock:
            _idle[kind].append(tasks)
    finally:
        ended()


def _forget() -> None:
    """In the child of a fork, which has none of the threads."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, where no process forks
    os.register_at_fork(after_in_child=_forget)
