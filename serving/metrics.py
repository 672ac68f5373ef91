"""What the server counts, on Triton's own metrics port."""

from typing import Any, Protocol

from vexpress_trt.serving import protocol

OUTCOMES = ("ok", "cancelled", *protocol.CODES)
FIRST_ANSWER_BUCKETS = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0]


class Metrics(Protocol):
    """Everything the dispatcher reports; called on any of its threads."""

    def queue(self, *, waiting: int, running: int) -> None: ...

    def outcome(self, name: str) -> None:
        """One request ended, as one of OUTCOMES."""

    def first_answer(self, seconds: float) -> None:
        """From a request's arrival to its first frame or chunk."""

    def frames(self, is_frame: bool) -> None:
        """One frame, or one chunk of a file, was passed on."""

    def worker(self, number: int, memory: int) -> None:
        """Resident bytes of a worker between requests."""

    def restarted(self, number: int) -> None:
        """A worker is replaced."""


class TritonMetrics:
    """`Metrics` as Prometheus families of the server that runs this model; `utils` is `triton_python_backend_utils`."""

    def __init__(self, utils: Any, workers: int) -> None:
        family = utils.MetricFamily
        self._families = []  # a family must outlive its metrics

        def made(kind: int, name: str, description: str) -> Any:
            self._families.append(family(name=f"vexpress_{name}", description=description, kind=kind))
            return self._families[-1].Metric

        gauge, counter, histogram = family.GAUGE, family.COUNTER, family.HISTOGRAM
        queue = made(gauge, "requests", "Requests in the server")
        self._waiting, self._running = (queue(labels={"state": state}) for state in ("waiting", "running"))
        ended = made(counter, "requests_ended", "Requests that ended, by outcome")
        self._outcomes = {name: ended(labels={"outcome": name}) for name in OUTCOMES}
        first = made(histogram, "first_answer_seconds", "From a request's arrival to its first frame or chunk")
        self._first = first(labels={}, buckets=FIRST_ANSWER_BUCKETS)
        passed = made(counter, "answers", "Frames and chunks passed on")
        self._frames, self._chunks = (passed(labels={"kind": kind}) for kind in ("frame", "chunk"))
        memory = made(gauge, "worker_memory_bytes", "Resident memory of a worker, between requests")
        restarts = made(counter, "worker_restarts", "Workers that were replaced")
        self._memory = [memory(labels={"worker": str(number)}) for number in range(workers)]
        self._restarts = [restarts(labels={"worker": str(number)}) for number in range(workers)]

    def queue(self, *, waiting: int, running: int) -> None:
        self._waiting.set(waiting)
        self._running.set(running)

    def outcome(self, name: str) -> None:
        self._outcomes[name].increment(1)

    def first_answer(self, seconds: float) -> None:
        self._first.observe(seconds)

    def frames(self, is_frame: bool) -> None:
        (self._frames if is_frame else self._chunks).increment(1)

    def worker(self, number: int, memory: int) -> None:
        self._memory[number].set(memory)

    def restarted(self, number: int) -> None:
        self._restarts[number].increment(1)
