"""Many clips on a Ray cluster of this machine while one actor is killed: are all of them made, and none twice?

    python -m vexpress_trt.bench.batch_ray --out batch_ray.json

The clips are the demo's portrait and a second of its speech under other seeds, by the model in the box.
"""

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av

from vexpress_trt.bench.machine import describe_machine
from vexpress_trt.bench.speech import write_speech
from vexpress_trt.models.box.box import SETTINGS
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.serving.batch import run_batch
from vexpress_trt.serving.batch_jobs import Job
from vexpress_trt.serving.batch_ray import LOCAL, RayPool
from vexpress_trt.serving.batch_worker import CountFrames, Runner, clip_runner

DEMO = Path(__file__).resolve().parent.parent / "models" / "demo"
SPEECH_SECONDS = 1.2


class Event(NamedTuple):
    """What happened to a clip: begin or end, in seconds of the monotonic clock."""

    video: str
    process: int
    time: float
    what: str


@contextmanager
def noting_runner(log: Path) -> Iterator[Runner]:
    """Clips as usual; an `Event` before and after each, as a line of the log."""

    def note(request: GenerationRequest, what: str) -> None:
        with open(log, "a") as file:
            file.write(json.dumps(Event(str(request.output_path), os.getpid(), time.monotonic(), what)) + "\n")

    with clip_runner() as make:

        def run(request: GenerationRequest, count_frames: CountFrames) -> dict[str, Any]:
            note(request, "begin")
            summary = make(request, count_frames)
            note(request, "end")
            return summary

        yield run


def measure(folder: Path, clips: int, actors: int, kill_after: int) -> dict[str, Any]:
    """Run the batch in an empty folder, kill an actor at work when `kill_after` clips are made, count what is there."""
    log, results = folder / "log.jsonl", folder / "results.jsonl"
    speech = write_speech(DEMO / "speech.flac", SPEECH_SECONDS, folder / "speech.wav")
    jobs = [
        Job(
            seed,
            GenerationRequest(
                DEMO / "portrait.jpg",
                speech,
                folder / "clips" / f"{seed:03d}.mp4",
                num_inference_steps=4,
                seed=seed,
                **SETTINGS,
            ),
        )
        for seed in range(1, clips + 1)
    ]
    killed: list[tuple[int, float]] = []
    killer = threading.Thread(target=_kill_one, args=(log, kill_after, killed), daemon=True)
    killer.start()
    pool = RayPool(LOCAL, partial(noting_runner, log), size=actors, cpus_per_actor=1)
    report = run_batch(jobs, pool, results)
    killer.join()

    lines = [json.loads(line) for line in results.read_text().splitlines()]
    figures = {"clips": clips, "actors": actors, "done": report.done, "failed": len(report.failures)}
    figures |= _counted([job.output for job in jobs], lines, _events(log), *killed[0])
    return figures | {
        "killed_after_clips": kill_after,
        "files_left_over": len(list((folder / "clips").iterdir())) - clips,
        "seconds": round(report.seconds, 1),
        "frames_per_second": round(report.frames / report.seconds, 2),
    }


def _counted(
    videos: list[str], records: list[dict[str, Any]], events: list[Event], victim: int, when: float
) -> dict[str, Any]:
    """How often each video was recorded and made, and what followed when process `victim` was killed at `when`."""
    recorded = Counter(record["output_path"] for record in records)
    made = Counter(event.video for event in events if event.what == "end")
    begun = Counter(event.video for event in events if event.what == "begin")
    frames = {record["output_path"]: record["summary"]["frames"] for record in records if record["summary"]}
    before = {event.process for event in events if event.time <= when}
    return {
        "recorded_once": sum(recorded[video] == 1 for video in videos),
        "made_once": sum(made[video] == 1 for video in videos),
        "playable_with_all_frames": sum(_frames(video) == frames.get(video) for video in videos),
        "begun_twice": sum(begun[video] == 2 for video in videos),
        "begun_oftener": sum(begun[video] > 2 for video in videos),
        "processes_that_made_clips": len({event.process for event in events if event.what == "end"}),
        "killed_actor_was_heard_of_again": any(event.process == victim and event.time > when for event in events),
        "seconds_until_a_new_actor_began": round(
            min(event.time - when for event in events if event.process not in before), 1
        ),
        "frames": sum(frames.values()),
    }


def _kill_one(log: Path, after: int, killed: list[tuple[int, float]]) -> None:
    """Kill the process whose clip began last, when enough are made and it has been at work for a moment."""
    while not killed:
        time.sleep(0.1)
        events = _events(log)
        ended = {event.video for event in events if event.what == "end"}
        working = [event for event in events if event.video not in ended]
        if len(ended) >= after and working and time.monotonic() - working[-1].time > 0.3:
            os.kill(working[-1].process, signal.SIGKILL)
            killed.append((working[-1].process, time.monotonic()))


def _events(log: Path) -> list[Event]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [Event(*json.loads(line)) for line in lines]


def _frames(video: str) -> int:
    with av.open(video) as media:
        return sum(1 for _ in media.decode(video=0))


def main() -> None:
    """Parse flags, measure, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=50)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--kill_after", type=int, default=15, help="clips that are made before")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), args.clips, args.actors, args.kill_after)
    report = {
        "command": f"python -m vexpress_trt.bench.batch_ray --clips {args.clips} --actors {args.actors} "
        f"--kill_after {args.kill_after}",
        "machine": describe_machine(),
        **figures,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
