"""Workers of a batch, wherever they run, and those on this machine: a process for each device."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from time import monotonic, sleep
from types import TracebackType
from typing import Protocol, Self

from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.serving.batch_worker import Attempt, MakeRunner, attempt

REPORT_SECONDS = 0.5  # between a worker's counts of frames
UNWIND_SECONDS = 15.0  # for a worker that is asked to end: one call of a large denoiser


@dataclass(frozen=True)
class Event:
    """What a worker tells: how many frames of its clip are final, or how the attempt ended."""

    worker: int
    frames: int = 0
    attempt: Attempt | None = None


class Pool(Protocol):
    """`size` workers, numbered from 0, each with one job at a time. Used as a context manager.

    A worker starts with its first job. One that dies, or fails for another reason than its input, is replaced before
    its next job; its death is the failure of the job it had. Leaving the context ends all workers, and what they were
    writing is not put in place.
    """

    size: int

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def submit(self, worker: int, request: GenerationRequest) -> None:
        """Give a job to a worker that has none."""

    def collect(self) -> list[Event]:
        """Wait until busy workers have something to tell; an empty list after a while of silence."""


class LocalPool:
    """Processes of this machine. Worker w uses GPU w modulo `gpus` where there are any, and `threads` CPU threads."""

    def __init__(self, size: int, make_runner: MakeRunner, *, threads: int, gpus: int = 0) -> None:
        self.size = size
        self._make_runner = make_runner
        self._threads = threads
        self._gpus = gpus
        self._workers: dict[int, _Worker] = {}
        self._busy: set[int] = set()

    def submit(self, worker: int, request: GenerationRequest) -> None:
        process = self._workers.get(worker)
        if process is not None and not process.alive:
            self._retire(worker)
            process = None
        if process is None:
            process = self._workers[worker] = _Worker(self._make_runner)
        gpu = worker % self._gpus if self._gpus and request.device != "cpu" else request.gpu_id
        with suppress(OSError):  # it has just died: `collect` will find out
            process.connection.send(replace(request, gpu_id=gpu, threads=request.threads or self._threads))
        self._busy.add(worker)

    def collect(self) -> list[Event]:
        numbers = {self._workers[worker].connection: worker for worker in self._busy}
        events = []
        for connection in wait(list(numbers), timeout=REPORT_SECONDS):
            worker = numbers[connection]
            told = self._workers[worker].receive()
            if isinstance(told, int):
                events.append(Event(worker, frames=told))
                continue
            self._busy.discard(worker)
            if told.summary is None and not told.inputs_fault:
                self._retire(worker)
            events.append(Event(worker, attempt=told))
        return events

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._busy:
            self._workers[worker].process.terminate()
        for process in self._workers.values():
            process.connection.close()  # an idle one ends when nobody can give it a job any more
        for process in self._workers.values():
            process.end()
        self._workers.clear()
        self._busy.clear()

    def _retire(self, worker: int) -> None:
        process = self._workers.pop(worker)
        process.connection.close()
        process.end()


class _Worker:
    """One process and the parent's end of the pipe to it."""

    def __init__(self, make_runner: MakeRunner) -> None:
        context = multiprocessing.get_context("spawn")  # a forked one would share threads' locks and the GPU's state
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, make_runner), daemon=True)
        with other, _without_interrupts():
            self.process.start()

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def receive(self) -> int | Attempt:
        """A count of frames or the end of an attempt; for a process that has ended, that."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(UNWIND_SECONDS)
            return Attempt(cause=f"the worker's process died ({_exit_reason(self.process.exitcode)})")

    def end(self) -> None:
        self.process.join(UNWIND_SECONDS)
        if self.alive:
            self.process.kill()
            self.process.join()


class _without_interrupts:
    """Ctrl-C at a terminal, and its end, reach the processes started in this block as well: they are for the driver,
    which ends them.

    Both signals stay blocked in them; here they are delivered when the block ends.
    """

    def __enter__(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            resource_tracker.ensure_running()  # its start would lift the block
            self._before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})

    def __exit__(self, *problem: object) -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


def _serve(connection: Connection, make_runner: MakeRunner) -> None:
    """A worker's process: jobs from the pipe, one at a time, until it is closed; SIGTERM unwinds."""
    signal.signal(signal.SIGTERM, _unwind)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with make_runner() as run, suppress(EOFError, BrokenPipeError):
        while True:
            request = connection.recv()
            connection.send(attempt(run, request, _now_and_then(connection.send)))


def _unwind(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def _end_with_parent() -> None:
    """A killed driver takes its workers along, so that none goes on beside those of the run that resumes."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
    sleep(UNWIND_SECONDS)
    os._exit(1)


def _now_and_then(send: Callable[[int], None]) -> Callable[[int], None]:
    """Counts of frames may come from several threads and at any rate; they are sent one at a time, not too often."""
    lock, sent = threading.Lock(), 0.0

    def count(frames: int) -> None:
        nonlocal sent
        with lock:
            if monotonic() - sent >= REPORT_SECONDS:
                sent = monotonic()
                send(frames)

    return count


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"
