"""A build beside the main thread, which so can take Ctrl-C: the first one stops the build, a second one everything."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.trt.builder import Build, BuildOptions, Plan
from vexpress_trt.engines.trt.profile import Profile

if TYPE_CHECKING:
    import onnx

STOPPING = "stopping: waiting for the compiler; Ctrl-C again ends at once"
_POLL_SECONDS = 0.2
_START_SECONDS = 5  # that a thread takes at most to begin
Result = TypeVar("Result")


def run_build(
    build: Build,
    path: Path,
    spec: GraphSpec,
    profile: Profile,
    options: BuildOptions,
    context: AbstractContextManager[Any],
    tell: Callable[[str], None],
    model: "onnx.ModelProto | None" = None,
) -> Plan:
    """What `build.run` gives and raises, in a thread of its own with `context`, a GPU's or none, entered there.

    The first Ctrl-C cancels the build, which `tell` is told, and is raised at the builder's next step; a second one
    ends the process.
    """

    def stop() -> None:
        build.cancel()
        tell(STOPPING)

    return in_thread(lambda: build.run(path, spec, profile, options, model), context, stop)


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
