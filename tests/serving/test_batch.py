"""Batches under faults: work without a model in real worker processes, see `batch_runners`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from batch_runners import FRAMES, scripted

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.progress import ProgressEvent
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.serving.batch import BatchReport, run_batch
from vexpress_trt.serving.batch_jobs import Job
from vexpress_trt.serving.batch_pool import Event, LocalPool
from vexpress_trt.serving.batch_worker import Attempt

TESTS = Path(__file__).resolve().parent.parent
DRIVER = """
import sys
from batch_runners import scripted
from vexpress_trt import cli
from vexpress_trt.serving import batch_worker

if __name__ == "__main__":
    batch_worker.clip_runner = scripted
    folder = sys.argv[1]
    flags = ["--results", f"{folder}/results.jsonl", "--workers", "2", "--threads", "1", "--quiet"]
    sys.exit(cli.main(["batch", f"{folder}/jobs.jsonl", *flags]))
"""


class Folder:
    """Jobs, and what became of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "a.png").write_bytes(b"portrait")

    def jobs(self, *scripts: str) -> list[Job]:
        """One job for each script of what happens to it: clip1.mp4, clip2.mp4, ..."""
        return [self._job(number, script) for number, script in enumerate(scripts, 1)]

    def _job(self, number: int, script: str) -> Job:
        speech = self.path / f"speech{number}.wav"
        speech.write_text(script)
        return Job(number, GenerationRequest(self.path / "a.png", speech, self.path / "out" / f"clip{number}.mp4"))

    def run(self, jobs: list[Job], workers: int = 2, **options: object) -> BatchReport:
        return run_batch(jobs, LocalPool(workers, scripted, threads=1), self.path / "results.jsonl", **options)

    @property
    def log(self) -> list[list[str]]:
        path = self.path / "attempts.log"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def attempts(self) -> dict[str, int]:
        return Counter(line[0] for line in self.log if line[1] == "begin")

    @property
    def made(self) -> dict[str, int]:
        return Counter(line[0] for line in self.log if line[1] == "end")

    @property
    def records(self) -> list[dict]:
        return [json.loads(line) for line in (self.path / "results.jsonl").read_text().splitlines()]

    @property
    def recorded(self) -> list[tuple[str, str]]:
        return sorted((Path(record["output_path"]).name, record["status"]) for record in self.records)

    @property
    def videos(self) -> list[str]:
        return sorted(os.listdir(self.path / "out"))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_every_job_is_done_and_recorded_once(folder: Folder) -> None:
    report = folder.run(folder.jobs("", "", ""))
    assert (report.jobs, report.done, report.skipped, report.retried) == (3, 3, 0, 0)
    assert report.frames == 3 * FRAMES
    assert folder.made == {"clip1.mp4": 1, "clip2.mp4": 1, "clip3.mp4": 1}
    assert folder.recorded == [("clip1.mp4", "done"), ("clip2.mp4", "done"), ("clip3.mp4", "done")]
    assert folder.records[0]["summary"] == {"frames": FRAMES}


def test_what_is_done_is_skipped_and_done_again_on_demand(folder: Folder) -> None:
    jobs = folder.jobs("", "")
    folder.run(jobs[:1])
    assert folder.run(jobs).skipped == 1
    assert folder.attempts == {"clip1.mp4": 1, "clip2.mp4": 1}
    assert folder.run(jobs, again=True).done == 2
    assert folder.attempts == {"clip1.mp4": 2, "clip2.mp4": 2}


def test_a_job_that_fails_is_tried_again_so_often_and_no_oftener(folder: Folder) -> None:
    report = folder.run(folder.jobs("fail 1", "fail 9", ""), retries=2)
    assert folder.attempts == {"clip1.mp4": 2, "clip2.mp4": 3, "clip3.mp4": 1}
    assert (report.done, report.retried) == (2, 3)
    (failure,) = report.failures
    assert (failure.line, failure.attempts, failure.cause) == (2, 3, "RuntimeError: the device is gone")
    assert f"line 2, {folder.path}/out/clip2.mp4: RuntimeError: the device is gone (tried 3 times)" in report.as_text()
    assert folder.recorded == [("clip1.mp4", "done"), ("clip2.mp4", "failed"), ("clip3.mp4", "done")]


def test_the_inputs_fault_is_not_tried_again_and_keeps_the_worker(folder: Folder) -> None:
    report = folder.run(folder.jobs("refuse", "", ""), workers=1, retries=5)
    assert folder.attempts["clip1.mp4"] == 1
    assert report.failures[0].cause == "the portrait has no face: give one with a face."
    assert len({line[2] for line in folder.log}) == 1


def test_a_worker_that_failed_is_replaced(folder: Folder) -> None:
    folder.run(folder.jobs("fail 1"), workers=1)
    first, second = (line[2] for line in folder.log if line[1] == "begin")
    assert first != second


def test_a_dead_workers_job_goes_to_a_new_one(folder: Folder) -> None:
    report = folder.run(folder.jobs("die 1", "", ""))
    assert (report.done, report.retried) == (3, 1)
    assert folder.made == {"clip1.mp4": 1, "clip2.mp4": 1, "clip3.mp4": 1}
    assert folder.videos == ["clip1.mp4", "clip2.mp4", "clip3.mp4"], "no temporary file is left"


def test_a_job_that_kills_its_workers_is_given_up(folder: Folder) -> None:
    report = folder.run(folder.jobs("die 9", ""))
    assert folder.attempts["clip1.mp4"] == 2
    assert report.failures[0].cause == "the worker's process died (killed by SIGKILL)"
    assert folder.videos == ["clip2.mp4"]


def test_workers_share_gpus_and_threads_out(folder: Folder) -> None:
    pool = LocalPool(2, scripted, threads=3, gpus=2)
    run_batch(folder.jobs("sleep 0.5", "sleep 0.5"), pool, folder.path / "results.jsonl")
    assert sorted(line[3:] for line in folder.log if line[1] == "begin") == [
        ["gpu", "0", "threads", "3"],
        ["gpu", "1", "threads", "3"],
    ]


def test_progress_counts_jobs_and_frames(folder: Folder) -> None:
    events: list[ProgressEvent] = []
    folder.run(folder.jobs("sleep 1.2", "refuse"), on_progress=events.append)
    assert (events[0].done, events[0].total, events[0].detail) == (0, 2, "2 in work, 0 failed")
    assert FRAMES // 2 in {event.frames_done for event in events}
    assert (events[-1].done, events[-1].detail, events[-1].frames_done) == (2, "0 in work, 1 failed", FRAMES)


class Obedient:
    """A pool without workers: every job ends well, the first worker's first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.given: list[tuple[int, GenerationRequest]] = []
        self._open: dict[int, GenerationRequest] = {}

    def __enter__(self) -> "Obedient":
        return self

    def __exit__(self, *problem: object) -> None:
        pass

    def submit(self, worker: int, request: GenerationRequest) -> None:
        self.given.append((worker, request))
        self._open[worker] = request

    def collect(self) -> list[Event]:
        worker = min(self._open)
        del self._open[worker]
        return [Event(worker, attempt=Attempt({"frames": 1}))]


def test_jobs_go_where_their_engines_are_loaded(folder: Folder) -> None:
    bundles = ["x", "y", "x", "y", "x", "y"]
    jobs = [
        Job(number, GenerationRequest(Path("a.png"), Path("b.wav"), folder.path / f"{number}.mp4", bundle=Path(bundle)))
        for number, bundle in enumerate(bundles, 1)
    ]
    pool = Obedient(2)
    run_batch(jobs, pool, folder.path / "results.jsonl")
    order = [(worker, str(request.bundle)) for worker, request in pool.given]
    assert order == [(0, "x"), (1, "y"), (0, "x"), (0, "x"), (0, "y"), (0, "y")]


@pytest.fixture
def driver(folder: Folder) -> Iterator[Callable[[], subprocess.Popen]]:
    """Starts a batch of the folder's jobs.jsonl in a process of its own."""
    path = folder.path / "driver.py"
    path.write_text(DRIVER)
    started = []

    def start() -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(TESTS)}
        command = [sys.executable, str(path), str(folder.path)]
        started.append(subprocess.Popen(command, env=environment, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def _write_jobs(folder: Folder, *scripts: str) -> None:
    names = ("reference_image_path", "audio_path", "output_path")
    lines = [json.dumps({name: str(getattr(job.request, name)) for name in names}) for job in folder.jobs(*scripts)]
    (folder.path / "jobs.jsonl").write_text("\n".join(lines))


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_killed_driver_resumes(folder: Folder, driver: Callable[[], subprocess.Popen]) -> None:
    _write_jobs(folder, "", "sleep 60", "sleep 60", "")
    killed = driver()
    _wait_for(lambda: folder.made["clip1.mp4"] == 1 and {"clip2.mp4", "clip3.mp4"} <= folder.attempts.keys())
    _wait_for(lambda: (folder.path / "results.jsonl").read_text().endswith("\n"))
    workers = {int(line[2]) for line in folder.log}
    killed.kill()
    killed.wait()
    _wait_for(lambda: not any(map(psutil.pid_exists, workers)))
    assert folder.videos == ["clip1.mp4"], "its workers ended with it and took away what they had begun"
    with open(folder.path / "results.jsonl", "a") as results:
        results.write('{"status": "do')
    for number in (2, 3):
        (folder.path / f"speech{number}.wav").write_text("")
    (folder.path / "out" / ".clip2.01234567.tmp.mp4").write_text("of a worker that was killed as well")
    (folder.path / "out" / ".clip2.01234567.tmp.mp4.lock").touch()

    assert driver().wait(timeout=60) == 0
    assert folder.made == {f"clip{number}.mp4": 1 for number in (1, 2, 3, 4)}
    assert folder.recorded == [(f"clip{number}.mp4", "done") for number in (1, 2, 3, 4)]
    assert folder.videos == [f"clip{number}.mp4" for number in (1, 2, 3, 4)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_a_terminal_sends_to_a_worker_is_for_the_driver(
    folder: Folder, driver: Callable[[], subprocess.Popen], number: signal.Signals
) -> None:
    _write_jobs(folder, "sleep 0.5")
    process = driver()
    _wait_for(lambda: len(folder.attempts) == 1)
    os.kill(int(folder.log[0][2]), number)
    assert process.wait(timeout=30) == 0
    assert folder.attempts == {"clip1.mp4": 1}


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_driver_leaves_nothing_half_done(
    folder: Folder, driver: Callable[[], subprocess.Popen], stop: signal.Signals, status: int
) -> None:
    _write_jobs(folder, "sleep 60", "sleep 60")
    process = driver()
    _wait_for(lambda: len(folder.attempts) == 2)
    os.killpg(process.pid, stop)  # all processes at once, as a terminal and a service manager do
    assert process.wait(timeout=30) == status
    assert not any(psutil.pid_exists(int(line[2])) for line in folder.log)
    assert not (folder.path / "out").exists() or folder.videos == []
    assert folder.records == []


def test_a_cluster_loses_an_actor_and_no_job(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (the ray extra)")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.setenv("HOME", str(folder.path))  # Ray keeps a token there
    from vexpress_trt.serving.batch_ray import RayPool

    jobs = folder.jobs("die 1", "sleep 1", "fail 1", "refuse", "", "")
    frames = []
    pool = RayPool("local", scripted, size=2, cpus_per_actor=1)
    report = run_batch(
        jobs, pool, folder.path / "results.jsonl", on_progress=lambda event: frames.append(event.frames_done)
    )
    assert (report.done, report.retried) == (5, 2)
    assert [failure.line for failure in report.failures] == [4]
    assert folder.attempts == {"clip1.mp4": 2, "clip2.mp4": 1, "clip3.mp4": 2, **{f"clip{n}.mp4": 1 for n in (4, 5, 6)}}
    assert folder.made == {f"clip{number}.mp4": 1 for number in (1, 2, 3, 5, 6)}
    assert len(folder.records) == 6
    assert folder.videos == [f"clip{number}.mp4" for number in (1, 2, 3, 5, 6)]
    assert frames[-1] == 5 * FRAMES


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999999"])
def test_a_cluster_that_does_not_answer_is_refused_at_once(address: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (the ray extra)")
    from vexpress_trt.serving.batch_ray import RayPool

    with pytest.raises(UserError, match=f"--ray {address}: no cluster answers"), RayPool(address, scripted):
        pass
