"""Many clips: jobs to workers, bounded retries, and a line of results for each job when it has come to an end."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from vexpress_trt.engines.files import remove_leftovers
from vexpress_trt.runtime.progress import ProgressCallback, ProgressEvent
from vexpress_trt.serving.batch_jobs import Job
from vexpress_trt.serving.batch_pool import Pool
from vexpress_trt.serving.batch_results import DONE, FAILED, Results
from vexpress_trt.serving.batch_worker import Attempt


@dataclass(frozen=True)
class Failure:
    """A job that could not be done: its line, its video, how often it was tried and why it failed the last time."""

    line: int
    output_path: str
    attempts: int
    cause: str


@dataclass(frozen=True)
class BatchReport:
    """The closing figures of a batch; `retried` counts attempts beyond the first, `frames` those of this run."""

    jobs: int
    done: int
    skipped: int
    retried: int
    frames: int
    seconds: float
    results_path: str
    failures: tuple[Failure, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """A few lines for a person."""
        lines = [
            f"{self.jobs} jobs: {self.done} done, {self.skipped} done before, {len(self.failures)} failed; "
            f"{self.retried} attempts were repeated",
            f"{self.frames} frames in {self.seconds:.1f} s, {self.frames / max(self.seconds, 1e-9):.2f} frames/s",
            *(
                f"line {failure.line}, {failure.output_path}: {failure.cause}"
                + (f" (tried {failure.attempts} times)" if failure.attempts > 1 else "")
                for failure in self.failures
            ),
            f"results in {self.results_path}",
        ]
        return "\n".join(lines)


def run_batch(
    jobs: Sequence[Job],
    pool: Pool,
    results_path: Path,
    *,
    retries: int = 1,
    again: bool = False,
    on_progress: ProgressCallback = lambda event: None,
) -> BatchReport:
    """Make the clips of all jobs that were not made before, or of all with `again`.

    A job that fails, or whose worker dies, is tried up to `retries` times more, after the others; not where its input
    is at fault. Each job that comes to an end gets one line of results. Raises UserError where those cannot be written.
    """
    with Results(results_path) as results:
        left = [job for job in jobs if again or not results.has(job)]
        _clear(left)
        batch = _Batch(left, pool, results, retries, on_progress)
        if left:
            batch.run()
        return batch.report(skipped=len(jobs) - len(left))


class _Batch:
    """The jobs of one run: waiting, in work, or at an end."""

    def __init__(
        self, jobs: Sequence[Job], pool: Pool, results: Results, retries: int, on_progress: ProgressCallback
    ) -> None:
        self._began = perf_counter()
        self._jobs = len(jobs)
        self._pool = pool
        self._results = results
        self._retries = retries
        self._report = on_progress
        self._waiting = deque(jobs)
        self._running: dict[int, Job] = {}
        self._tries: dict[Job, int] = {}
        self._engines: dict[int, tuple[Any, ...]] = {}  # what each worker's last job had loaded
        self._frames: dict[int, int] = {}  # of the clips in work
        self._frames_done = self._done = self._retried = 0
        self._failures: list[Failure] = []

    def run(self) -> None:
        try:
            with self._pool as pool:
                while self._waiting or self._running:
                    for worker in range(pool.size):
                        if self._waiting and worker not in self._running:
                            self._start(worker)
                    self._show()
                    for event in pool.collect():
                        if event.attempt is None:
                            self._frames[event.worker] = event.frames
                        else:
                            self._ended(event.worker, event.attempt)
                self._show()
        finally:
            _clear(self._running.values())

    def report(self, skipped: int) -> BatchReport:
        return BatchReport(
            jobs=skipped + self._jobs,
            done=self._done,
            skipped=skipped,
            retried=self._retried,
            frames=self._frames_done,
            seconds=perf_counter() - self._began,
            results_path=str(self._results.path),
            failures=tuple(sorted(self._failures, key=lambda failure: failure.line)),
        )

    def _start(self, worker: int) -> None:
        job = self._next_for(worker)
        self._waiting.remove(job)
        self._running[worker] = job
        self._engines[worker] = job.engines
        self._tries[job] = self._tries.get(job, 0) + 1
        self._pool.submit(worker, job.request)

    def _next_for(self, worker: int) -> Job:
        """The first job that can use the worker's engines; else the first that no other worker has engines for."""
        own = self._engines.get(worker)
        others = {engines for number, engines in self._engines.items() if number != worker}
        for fits in (lambda job: job.engines == own, lambda job: job.engines not in others):
            job = next(filter(fits, self._waiting), None)
            if job is not None:
                return job
        return self._waiting[0]

    def _ended(self, worker: int, attempt: Attempt) -> None:
        job = self._running.pop(worker)
        self._frames.pop(worker, None)
        if attempt.summary is not None:
            self._done += 1
            self._frames_done += attempt.summary["frames"]
            self._record(job, DONE, attempt, identity=attempt.identity, output_bytes=attempt.output_bytes)
            return
        _clear([job])
        if not attempt.inputs_fault and self._tries[job] <= self._retries:
            self._retried += 1
            self._waiting.append(job)
            return
        self._failures.append(Failure(job.line, job.output, self._tries[job], attempt.cause))
        self._record(job, FAILED, attempt, cause=attempt.cause)

    def _record(self, job: Job, status: str, attempt: Attempt, **about: Any) -> None:
        self._results.append(
            {
                "status": status,
                "output_path": job.output,
                "line": job.line,
                **about,
                "attempts": self._tries[job],
                "seconds": attempt.seconds,
                "ended": datetime.now(UTC).isoformat(timespec="seconds"),
                "worker": attempt.worker,
                "warnings": attempt.warnings,
                "summary": attempt.summary,
            }
        )

    def _show(self) -> None:
        ended = self._done + len(self._failures)
        detail = f"{len(self._running)} in work, {len(self._failures)} failed"
        frames = self._frames_done + sum(self._frames.values())
        self._report(ProgressEvent("jobs", ended, self._jobs, detail, frames))


def _clear(jobs: Iterable[Job]) -> None:
    """Remove temporary files that workers left beside the videos of these jobs when they were killed."""
    outputs = {job.request.output_path for job in jobs}
    remove_leftovers({output for output in outputs if output.parent.is_dir()})
