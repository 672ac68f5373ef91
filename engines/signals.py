"""Signals that end a command: the first one unwinds it."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

Result = TypeVar("Result")
STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def run_unwinding(command: Callable[[], Result]) -> Result:
    """Run a command on the main thread. The first Ctrl-C, SIGTERM or SIGHUP (the terminal is closed) unwinds it, so
    that threads end and temporary files go; later ones do not disturb that.

    Raises KeyboardInterrupt for Ctrl-C, else SystemExit with 128 and the signal's number. After it they stay ignored,
    as the process is about to end. A signal that it was started to ignore stays ignored. While the command imports a
    module it waits: native code swallows what is raised there, or crashes of it.
    """
    before = {name: signal.getsignal(name) for name in STOPPING}
    ours = [name for name, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def unwind(number: int, frame: FrameType | None) -> None:
        if _imports(frame):
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
            return
        for name in ours:
            signal.signal(name, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    for name in ours:
        signal.signal(name, unwind)
    try:
        return command()
    finally:
        for name in ours:
            if signal.getsignal(name) is unwind:
                signal.signal(name, before[name])


def _imports(frame: FrameType | None) -> bool:
    """Whether the command is about to import a module; whoever runs it may be, too."""
    while frame is not None and frame.f_code is not run_unwinding.__code__:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
