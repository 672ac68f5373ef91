"""Workers of a batch on a Ray cluster: one plain actor per GPU or share of CPUs. Ray is imported with this module only.

Files are read and written by the actors under the paths that the driver knows: the cluster shares a file system.
"""

import logging
import os
import re
import signal
import socket
import threading
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.serving.batch_pool import REPORT_SECONDS, UNWIND_SECONDS, Event
from vexpress_trt.serving.batch_worker import Attempt, MakeRunner, attempt

LOCAL = "local"  # the address that starts a cluster of this machine, for as long as the batch
CONNECT_SECONDS = 10.0
_REASON_LENGTH = 200


class RayPool:
    """Actors of a cluster, each with a GPU where `gpus` is set and the cluster has some, else with a share of CPUs.

    By default as many as the cluster has room for, of `cpus_per_actor` CPUs each: by default 1 beside a GPU, and
    otherwise what the smallest machine has. Raises UserError on entering where the cluster cannot be reached or has
    room for none.
    """

    def __init__(
        self,
        address: str,
        make_runner: MakeRunner,
        *,
        size: int | None = None,
        cpus_per_actor: int | None = None,
        gpus: bool = True,
    ) -> None:
        self.size = 0
        self._address = address
        self._make_runner = make_runner
        self._wanted = size
        self._cpus = cpus_per_actor
        self._gpus = gpus
        self._actors: dict[int, Any] = {}
        # Futures: waiting for them takes signals as usual, where Ray's own calls make an exit status 1 of any.
        self._calls: dict[Future, int] = {}  # attempts in progress
        self._counts: dict[Future, int] = {}  # questions for frames that are not answered yet

    def __enter__(self) -> Self:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            _check_reachable(self._address)
            own = {}
            if self._address == LOCAL:
                own = {"include_dashboard": False}
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a batch has nobody to report to
            ray.init(self._address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (RayError, OSError, ValueError, RuntimeError) as problem:
            raise UserError(
                f"--ray {self._address}: no cluster answers ({_reason(problem)}); one that wants a token needs "
                f"RAY_AUTH_MODE=token in the environment, and `--ray {LOCAL}` starts one"
            ) from problem
        try:
            if threading.current_thread() is threading.main_thread():
                for number, handler in handlers.items():  # Ray puts its own there, which aborts
                    signal.signal(number, handler)
            self._share_out()
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors.values():
            ray.kill(actor)
        if self._calls:  # once these are answered, with an error, nobody writes any more
            wait(self._calls, timeout=UNWIND_SECONDS)
        self._actors.clear()
        self._calls.clear()
        self._counts.clear()
        ray.shutdown()

    def submit(self, worker: int, request: GenerationRequest) -> None:
        if worker not in self._actors:
            self._actors[worker] = self._actor_class.remote(self._make_runner)
        # An actor sees no GPU but its own.
        mine = replace(request, gpu_id=0, threads=request.threads or self._threads)
        self._calls[self._actors[worker].run.remote(mine).future()] = worker

    def collect(self) -> list[Event]:
        asked = set(self._counts.values())
        ready, _ = wait([*self._calls, *self._counts], timeout=REPORT_SECONDS, return_when=FIRST_COMPLETED)
        if not ready:
            for worker in set(self._calls.values()) - asked:
                self._counts[self._actors[worker].frames.remote().future()] = worker
        events = []
        for answer in ready:
            if answer in self._calls:
                worker = self._calls.pop(answer)
                events.append(Event(worker, attempt=self._ending(worker, answer)))
            elif (worker := self._counts.pop(answer, None)) is not None:
                events += self._counted(worker, answer)
        return events

    def _ending(self, worker: int, answer: Future) -> Attempt:
        self._counts = {count: other for count, other in self._counts.items() if other != worker}
        try:
            told: Attempt = answer.result()
        except RayError as problem:
            told = Attempt(cause=f"the actor died ({_reason(problem)})")
        if told.summary is None and not told.inputs_fault:
            ray.kill(self._actors.pop(worker))
        return told

    def _counted(self, worker: int, answer: Future) -> list[Event]:
        try:
            return [Event(worker, frames=answer.result())]
        except RayError:  # the attempt's own answer says what happened
            return []

    def _share_out(self) -> None:
        """How many actors there are, and what each of them gets."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        per_actor: dict[str, float] = {}
        if self._gpus and any(node.get("GPU", 0) >= 1 for node in nodes):
            nodes = [node for node in nodes if node.get("GPU", 0) >= 1]
            per_actor["GPU"] = 1
        smallest = int(min((node.get("CPU", 0) for node in nodes), default=0))
        per_actor["CPU"] = self._cpus or (1 if "GPU" in per_actor else max(1, smallest))
        room = sum(int(min(node.get(name, 0) // share for name, share in per_actor.items())) for node in nodes)
        if not room:
            raise UserError(
                f"--cpus_per_actor {per_actor['CPU']}: no machine of the cluster has so many CPUs; the smallest has "
                f"{smallest}"
            )
        self.size = min(room, self._wanted or room)
        self._threads = int(per_actor["CPU"])
        self._actor_class = ray.remote(
            num_cpus=per_actor["CPU"],
            num_gpus=per_actor.get("GPU", 0),
            max_concurrency=2,  # the second one counts frames while the first makes them
            max_restarts=0,
        )(_Actor)


class _Actor:
    """Runs in a process of the cluster."""

    def __init__(self, make_runner: MakeRunner) -> None:
        self._stack = ExitStack()
        self._run = self._stack.enter_context(make_runner())
        self._frames = 0

    def run(self, request: GenerationRequest) -> Attempt:
        """Make one clip."""
        self._frames = 0
        return attempt(self._run, request, self._count)

    def frames(self) -> int:
        """Final frames of the clip that is being made."""
        return self._frames

    def _count(self, frames: int) -> None:
        self._frames = frames


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes. Raises OSError where nothing listens at HOST:PORT."""
    match = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if match:
        socket.create_connection((match[1], int(match[2])), timeout=CONNECT_SECONDS).close()


def _reason(problem: Exception) -> str:
    """What Ray says last, behind identifiers and tracebacks."""
    return str(problem).strip().rpartition("\n")[2][:_REASON_LENGTH]
