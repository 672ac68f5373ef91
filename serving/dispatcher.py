"""Requests to workers: a bounded queue, one thread for each worker, and what happens when something goes wrong."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from vexpress_trt.serving import protocol
from vexpress_trt.serving.errors import Refusal
from vexpress_trt.serving.job import Job, check_pixels
from vexpress_trt.serving.limits import Limits
from vexpress_trt.serving.metrics import Metrics
from vexpress_trt.serving.worker_process import CLOSING_KINDS, Unusable, WorkerDied, WorkerProcess

POLL = 0.1  # seconds between looks at whether a client is still there
CANCEL_GRACE = 15.0  # seconds a worker has to end a cancelled clip before it is killed
RESTART_PAUSE = 2.0  # seconds before a worker that did not come up is tried again


class _Gone(Exception):
    """The client went away."""


class _Ended(Refusal):
    """The job ends with this, and the worker has done with it."""


class Dispatcher:
    """Runs jobs on workers, each worker one at a time, in the order in which they came.

    `starts` makes one worker each; all are up when the constructor returns. `held` tells how many bytes of answers
    Triton holds. Raises Unusable or WorkerDied when a worker does not come up.
    """

    def __init__(
        self,
        starts: list[Callable[[], WorkerProcess]],
        limits: Limits,
        metrics: Metrics,
        held: Callable[[], int] = lambda: 0,
    ) -> None:
        self._limits = limits
        self._metrics = metrics
        self._held = held
        self._capacity = 4 * len(starts) if limits.queue is None else limits.queue
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running = 0
        self._draining = self._closing = False
        workers: list[WorkerProcess] = []
        try:
            for start in starts:
                workers.append(start())
        except BaseException:
            for worker in workers:
                worker.close()
            raise
        self._idle = len(workers)
        self._threads = [
            threading.Thread(target=self._run_slot, args=(number, start, worker), daemon=True)
            for number, (start, worker) in enumerate(zip(starts, workers, strict=True))
        ]
        self._threads.append(threading.Thread(target=self._watch_queue, daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job. Raises Refusal (`busy`) when there is no room or the server is ending."""
        with self._changed:
            if self._draining:
                raise Refusal(protocol.BUSY, "the server is ending: try another one, or later.")
            if 0 < self._limits.held << 20 < self._held():
                raise Refusal(protocol.BUSY, "answers to other requests are still to be read: try again later.")
            # A free worker takes its job at once, so that job does not wait.
            if len(self._waiting) >= self._capacity + self._idle:
                raise Refusal(protocol.BUSY, f"{len(self._waiting)} requests are waiting already: try again later.")
            self._waiting.append(job)
            self._count()
            self._changed.notify_all()

    def drain(self) -> None:
        """From now on nothing is accepted; returns when everything accepted is answered, or the limit has passed."""
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: not self._waiting and not self._running, self._limits.drain)

    def close(self) -> None:
        """End everything at once: what waits is refused, what runs is cancelled, the workers end."""
        with self._changed:
            self._draining = self._closing = True
            waiting, self._waiting = list(self._waiting), deque()
            self._changed.notify_all()
        for job in waiting:
            self._refuse(job, Refusal(protocol.BUSY, "the server has ended: try another one, or later."))
        for thread in self._threads:
            thread.join()

    def _count(self) -> None:
        self._metrics.queue(waiting=len(self._waiting), running=self._running)

    def _watch_queue(self) -> None:
        """Take jobs out of the queue whose client went away or whose time is over."""
        while not self._closing:
            time.sleep(POLL)
            with self._changed:
                waiting = list(self._waiting)
            for job in waiting:
                ending = _Gone() if job.answers.cancelled() else self._overdue(job)
                if ending is None:
                    continue
                with self._changed:
                    if job not in self._waiting:
                        continue
                    self._waiting.remove(job)
                    self._count()
                    self._changed.notify_all()
                self._refuse(job, ending)

    def _overdue(self, job: Job) -> Refusal | None:
        if not job.expired(self._limits):
            return None
        return Refusal(protocol.TIMEOUT, f"not finished within {self._limits.timeout:g} seconds.")

    def _refuse(self, job: Job, ending: Refusal | _Gone) -> None:
        if isinstance(ending, Refusal):
            self._metrics.outcome(ending.code)
            job.answers.refuse(ending)
        else:
            self._metrics.outcome("cancelled")
            job.answers.end()

    def _run_slot(self, number: int, start: Callable[[], WorkerProcess], worker: WorkerProcess | None) -> None:
        while True:
            self._metrics.worker(number, 0 if worker is None else worker.memory())
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    break
                job = self._waiting.popleft()
                self._idle -= 1
                self._running += 1
                self._count()
            healthy = worker is not None and self._run(worker, job)
            if healthy and 0 < self._limits.worker_memory << 20 < worker.memory():
                healthy = False
            if not healthy:
                worker = self._replaced(number, start, worker)
            with self._changed:
                self._idle += 1
                self._running -= 1
                self._count()
                self._changed.notify_all()
        if worker is not None:
            worker.close()

    def _replaced(
        self, number: int, start: Callable[[], WorkerProcess], worker: WorkerProcess | None
    ) -> WorkerProcess | None:
        """A new worker; None only when everything ends. Its predecessor is gone before."""
        if worker is not None:
            worker.close()
        while not self._closing:
            self._metrics.restarted(number)
            try:
                return start()
            except (WorkerDied, Unusable, OSError):
                time.sleep(RESTART_PAUSE)
        return None

    def _run(self, worker: WorkerProcess, job: Job) -> bool:
        """Answer one job; whether the worker can take another."""
        ending: Refusal | _Gone
        try:
            with job.message(self._limits) as message:
                worker.start(message)
                try:
                    self._pass_on(worker, job)
                    self._metrics.outcome("ok")
                    job.answers.end()
                    return True
                except _Ended as ended:
                    ending, healthy = ended, True
                except (Refusal, _Gone) as given_up:
                    ending, healthy = given_up, self._stopped(worker)
        except WorkerDied:
            ending = Refusal(protocol.FAILED, "the worker that made this clip ended unexpectedly: send it again.")
            healthy = False
        except OSError as problem:
            ending = Refusal(protocol.FAILED, f"the server has a problem with its disk ({problem.strerror}).")
            healthy = False
        self._refuse(job, ending)
        return healthy

    def _pass_on(self, worker: WorkerProcess, job: Job) -> None:
        """Send the worker's messages as they come, to the summary. Raises Refusal, _Gone, WorkerDied."""

        def check() -> None:
            if self._closing or job.answers.cancelled():
                raise _Gone
            overdue = self._overdue(job)
            if overdue is not None:
                raise overdue

        while True:
            header, payload = worker.receive(check, POLL)
            kind = header["kind"]
            if kind == "refused":
                raise _Ended(header["code"], header["sentence"])
            if kind == "info":
                self._check_size(job, header["info"])
            if kind in ("frame", "chunk"):
                if header["index"] == 0:
                    self._metrics.first_answer(time.monotonic() - job.arrived)
                self._metrics.frames(kind == "frame")
            try:
                job.answers.send(header, payload)
            except Refusal as refusal:
                if kind == "done":
                    raise _Ended(refusal.code, refusal.sentence) from None
                raise
            if kind == "done":
                return

    def _check_size(self, job: Job, info: dict[str, Any]) -> None:
        """Refuse what is too large once its size is known. Triton keeps all frames of a clip until its stream ends."""
        check_pixels(info["width"], info["height"], self._limits)
        size = (info["frames"] * info["width"] * info["height"] * 3) >> 20
        if job.asked.output == protocol.OUTPUT_FRAMES and size > self._limits.clip_memory:
            raise Refusal(
                protocol.INVALID,
                f"{info['frames']} frames of {info['width']}x{info['height']} have {size} MiB, more than this server's "
                f"{self._limits.clip_memory}: ask for an MP4, or for a shorter or smaller clip.",
            )

    def _stopped(self, worker: WorkerProcess) -> bool:
        """Cancel the worker's clip and wait for its closing message; False when it does not come in time."""
        worker.cancel()
        until = time.monotonic() + CANCEL_GRACE

        def check() -> None:
            if time.monotonic() > until or self._closing:
                raise WorkerDied

        with contextlib.suppress(WorkerDied):
            while True:
                header: dict[str, Any] = worker.receive(check, POLL)[0]
                if header["kind"] in CLOSING_KINDS:
                    return True
        return False
