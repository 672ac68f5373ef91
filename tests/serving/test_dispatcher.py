"""The dispatcher with workers that are played: what it does when readers, workers or the clock misbehave."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from vexpress_trt.serving import dispatcher as dispatching
from vexpress_trt.serving import protocol
from vexpress_trt.serving.dispatcher import Dispatcher
from vexpress_trt.serving.errors import Refusal
from vexpress_trt.serving.job import Job
from vexpress_trt.serving.limits import Limits
from vexpress_trt.serving.worker_process import Unusable, WorkerDied

DEFAULTS = Limits()


class PlayedWorker:
    """Answers jobs with `frames` frames, each when `go` is set; forgets to stop when it is `stubborn`.

    Between jobs it says nothing.
    """

    def __init__(
        self, *, frames: int = 1, stubborn: bool = False, memory: int = 1 << 20, info: dict | None = None
    ) -> None:
        self.go = threading.Event()
        self.jobs: list[dict] = []
        self.closed = self.cancelled = False
        self._frames, self._stubborn, self._memory = frames, stubborn, memory
        self._next = 0
        self._info, self._told = info, False
        self._over = True

    def memory(self) -> int:
        return self._memory

    def start(self, job: dict) -> None:
        self.jobs.append(job)
        self._next, self._told, self.cancelled, self._over = 0, False, False, False

    def receive(self, poll: Callable[[], None], every: float) -> tuple[dict[str, Any], bytearray]:
        while True:
            poll()
            if self.closed:
                raise WorkerDied
            if self._over:
                time.sleep(0.005)
            elif self.cancelled and not self._stubborn:
                self._over = True
                return {"kind": "cancelled"}, bytearray()
            elif self.go.wait(0.005):
                break
        if self._info and not self._next and not self._told:
            self._told = True
            return {"kind": "info", "info": self._info}, bytearray()
        self._next += 1
        if self._next > self._frames:
            self._over = True
            return {"kind": "done", "summary": {}}, bytearray()
        return {"kind": "frame", "index": self._next - 1}, bytearray(b"pixels")

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None:
        self.closed = True


class Counted:
    """Metrics that are remembered."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.restarts = self.passed = 0
        self.waiting = self.running = 0

    def queue(self, *, waiting: int, running: int) -> None:
        self.waiting, self.running = waiting, running

    def outcome(self, name: str) -> None:
        self.outcomes.append(name)

    def first_answer(self, seconds: float) -> None:
        assert seconds >= 0

    def frames(self, is_frame: bool) -> None:
        self.passed += is_frame

    def worker(self, number: int, memory: int) -> None:
        pass

    def restarted(self, number: int) -> None:
        self.restarts += 1


class Client:
    """One request's answers; `gone` when its client has left."""

    def __init__(self) -> None:
        self.received: list[str] = []
        self.refusal: Refusal | None = None
        self.over = threading.Event()
        self.gone = False

    def send(self, header: dict[str, Any], payload: bytearray) -> None:
        self.received.append(header["kind"])

    def refuse(self, refusal: Refusal) -> None:
        assert not self.over.is_set()
        self.refusal = refusal
        self.over.set()

    def end(self) -> None:
        assert not self.over.is_set()
        self.over.set()

    def cancelled(self) -> bool:
        return self.gone

    def ask(self, dispatcher: Dispatcher, limits: Limits = DEFAULTS, settings: bytes = b"{}") -> "Client":
        dispatcher.submit(Job.of(b"portrait", b"audio", None, settings, self, limits))
        return self

    def wait(self) -> str:
        """How it ended: the refusal's code, or "over"."""
        assert self.over.wait(10)
        return self.refusal.code if self.refusal else "over"


@contextmanager
def running(
    *workers: PlayedWorker, limits: Limits = DEFAULTS, held: Callable[[], int] = lambda: 0
) -> Iterator[tuple[Dispatcher, Counted]]:
    """A dispatcher whose slot has these workers, one after the other."""
    metrics, rest = Counted(), list(workers)
    dispatcher = Dispatcher([lambda: rest.pop(0)], limits, metrics, held)
    try:
        yield dispatcher, metrics
    finally:
        dispatcher.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_job_gets_its_frames_and_its_end() -> None:
    worker = PlayedWorker(frames=2)
    worker.go.set()
    with running(worker) as (dispatcher, metrics):
        client = Client().ask(dispatcher)
        assert client.wait() == "over"
        assert client.received == ["frame", "frame", "done"]
    assert (metrics.outcomes, metrics.passed) == (["ok"], 2)


def test_as_many_jobs_wait_as_the_queue_is_long_and_one_for_each_free_worker() -> None:
    worker = PlayedWorker()
    with running(worker, limits=Limits(queue=2)) as (dispatcher, metrics):
        first = Client().ask(dispatcher)
        until(lambda: metrics.running == 1)
        others = [Client().ask(dispatcher) for _ in range(2)]
        with pytest.raises(Refusal, match="2 requests are waiting") as problem:
            Client().ask(dispatcher)
        assert problem.value.code == protocol.BUSY
        worker.go.set()
        assert [client.wait() for client in (first, *others)] == ["over"] * 3


def test_jobs_that_wait_too_long_or_for_nobody_leave_the_queue() -> None:
    with running(PlayedWorker(), limits=Limits(timeout=0.3)) as (dispatcher, metrics):
        running_one, late, gone = (Client().ask(dispatcher, Limits()) for _ in range(3))
        gone.gone = True
        assert gone.wait() == "over"
        assert late.wait() == running_one.wait() == protocol.TIMEOUT
        until(lambda: metrics.running == metrics.waiting == 0)
    assert sorted(metrics.outcomes) == ["cancelled", "timeout", "timeout"]


def test_a_worker_that_stops_when_told_is_kept() -> None:
    worker = PlayedWorker()
    with running(worker) as (dispatcher, metrics):
        client = Client().ask(dispatcher)
        until(lambda: bool(worker.jobs))
        client.gone = True
        assert client.wait() == "over"
        worker.go.set()
        assert Client().ask(dispatcher).wait() == "over"
    assert (metrics.outcomes, metrics.restarts, len(worker.jobs)) == (["cancelled", "ok"], 0, 2)


def test_a_worker_that_does_not_stop_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "CANCEL_GRACE", 0.1)
    stubborn, second = PlayedWorker(stubborn=True), PlayedWorker()
    second.go.set()
    with running(stubborn, second) as (dispatcher, metrics):
        client = Client().ask(dispatcher)
        until(lambda: bool(stubborn.jobs))
        client.gone = True
        client.wait()
        assert Client().ask(dispatcher).wait() == "over"
    assert stubborn.closed and metrics.restarts == 1


def test_a_worker_that_has_grown_too_large_is_replaced_between_jobs() -> None:
    large, second = PlayedWorker(memory=200 << 20), PlayedWorker()
    large.go.set()
    second.go.set()
    with running(large, second, limits=Limits(worker_memory=100)) as (dispatcher, metrics):
        assert Client().ask(dispatcher).wait() == Client().ask(dispatcher).wait() == "over"
    assert (large.closed, len(large.jobs), len(second.jobs), metrics.restarts) == (True, 1, 1, 1)


def test_while_too_much_is_held_for_readers_the_answer_is_busy() -> None:
    worker, held = PlayedWorker(), [2 << 20]
    worker.go.set()
    with running(worker, limits=Limits(held=1), held=lambda: held[0]) as (dispatcher, _):
        with pytest.raises(Refusal, match="still to be read"):
            Client().ask(dispatcher)
        held[0] = 0
        assert Client().ask(dispatcher).wait() == "over"


def test_a_clip_of_too_many_pixels_is_refused_as_frames_and_made_as_a_file() -> None:
    worker = PlayedWorker(info={"frames": 3000, "width": 512, "height": 512})
    worker.go.set()
    with running(worker) as (dispatcher, metrics):
        client = Client().ask(dispatcher)
        assert client.wait() == protocol.INVALID
        assert "ask for an MP4" in client.refusal.sentence
        until(lambda: metrics.running == 0)
        assert Client().ask(dispatcher, settings=b'{"output": "mp4"}').wait() == "over"
    assert metrics.restarts == 0


def test_frames_whose_size_the_model_decides_are_within_the_limit_too() -> None:
    worker = PlayedWorker(info={"frames": 1, "width": 512, "height": 512})
    worker.go.set()
    with running(worker, limits=Limits(max_pixels=256 * 256)) as (dispatcher, _):
        client = Client().ask(dispatcher, settings=b'{"image_width": 512, "output": "mp4"}')
        assert client.wait() == protocol.INVALID
        assert "512x512 has more pixels" in client.refusal.sentence


def test_draining_finishes_what_was_accepted_and_takes_nothing_new() -> None:
    worker = PlayedWorker()
    with running(worker) as (dispatcher, _):
        clients = [Client().ask(dispatcher) for _ in range(3)]
        drained = threading.Thread(target=dispatcher.drain)
        drained.start()
        until(lambda: _refuses(dispatcher))
        assert drained.is_alive()
        worker.go.set()
        drained.join(10)
        assert [client.wait() for client in clients] == ["over"] * 3


def test_closing_refuses_what_waits_and_ends_workers() -> None:
    worker = PlayedWorker()
    with running(worker) as (dispatcher, _):
        Client().ask(dispatcher)
        until(lambda: bool(worker.jobs))
        waiting = Client().ask(dispatcher)
    assert waiting.wait() == protocol.BUSY
    assert worker.closed


@pytest.mark.parametrize("refused", ["frame", "done"])
def test_answers_that_cannot_be_passed_on_end_their_job_only(refused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "CANCEL_GRACE", 0.5)

    def full(header: dict[str, Any], payload: bytearray) -> None:
        if header["kind"] == refused:
            raise Refusal(protocol.FAILED, "no room")

    worker, client = PlayedWorker(), Client()
    worker.go.set()
    monkeypatch.setattr(client, "send", full)
    with running(worker) as (dispatcher, metrics):
        assert client.ask(dispatcher).wait() == protocol.FAILED
        assert Client().ask(dispatcher).wait() == "over"
    assert (metrics.outcomes, metrics.restarts) == (["failed", "ok"], 0)


def test_without_a_usable_worker_there_is_no_dispatcher() -> None:
    first = PlayedWorker()

    def unusable() -> PlayedWorker:
        raise Unusable("there is no bundle")

    with pytest.raises(Unusable, match="no bundle"):
        Dispatcher([lambda: first, unusable], Limits(), Counted())
    assert first.closed


def _refuses(dispatcher: Dispatcher) -> bool:
    try:
        Client().ask(dispatcher)
    except Refusal as problem:
        assert "ending" in problem.sentence
        return True
    return False
