"""One whole job in a process of its own: portrait and speech to an MP4, by `generate` or by the baseline.

    python -m vexpress_trt.bench.job JOB.json

prints a `JobResult` as JSON. Besides the MP4 the finished frames are kept as raw bytes, so that two jobs' pictures can
be compared without a codec between them; that takes both kinds of job the same milliseconds.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.runtime.request_json import field_value

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Job:
    """What to run: a request with its output_path, where the raw frames go, and for the baseline its checkpoints."""

    request: GenerationRequest
    frames_path: Path
    checkpoints: Path | None = None

    def save(self, path: Path) -> Path:
        """Write the job as JSON; returns `path`."""
        path.write_text(json.dumps(asdict(self), default=str), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> "Job":
        """What `save` wrote."""
        document = json.loads(path.read_text(encoding="utf-8"))
        checkpoints = document["checkpoints"]
        return cls(
            GenerationRequest(
                **{
                    name: None if value is None else field_value(name, value)
                    for name, value in document["request"].items()
                }
            ),
            Path(document["frames_path"]),
            None if checkpoints is None else Path(checkpoints),
        )


@dataclass(frozen=True)
class JobResult:
    """What a job says of itself; times in seconds, from when its inputs were opened."""

    backend: str
    dtype: str
    frames: int
    width: int
    height: int
    fps: float
    windows: int
    stage_seconds: dict[str, float]
    total_seconds: float
    time_to_first_frame: float
    peak_memory_mib: float


def run_generate(job: Job) -> JobResult:
    """`generate` as the command runs it."""
    from vexpress_trt.runtime.generation import generate

    generation = generate(job.request)
    with _written(job, generation.clip) as write, closing(iter(generation)) as frames:
        for frame in frames:
            with generation.watch.stage("encode"):
                write(frame.image)
    summary = generation.summary
    return JobResult(
        backend=summary.backend,
        dtype=summary.dtype,
        frames=summary.frames,
        width=summary.width,
        height=summary.height,
        fps=summary.fps,
        windows=summary.windows,
        stage_seconds=summary.stage_seconds,
        total_seconds=generation.watch.elapsed,
        time_to_first_frame=summary.time_to_first_frame,
        peak_memory_mib=summary.peak_memory_mib,
    )


def run_baseline(job: Job) -> JobResult:
    """The original's order of work on the same inputs."""
    import torch

    from vexpress_trt.bench.baseline import Baseline, BaselineInputs, Sampling
    from vexpress_trt.engines.bundle import Bundle
    from vexpress_trt.engines.cpu import usable_cores
    from vexpress_trt.engines.memory import peak_memory_mib
    from vexpress_trt.runtime.clip import prepare_clip
    from vexpress_trt.runtime.summary import Stopwatch

    request, watch = job.request, Stopwatch()
    torch.set_num_threads(request.threads or usable_cores())
    with watch.stage("inputs"):
        model = Bundle.open(request.bundle).manifest.model
        clip = prepare_clip(request, model)
        inputs = BaselineInputs.of(request, clip, model)
    baseline = Baseline(job.checkpoints, guided=request.guidance_scale > 1.0, watch=watch)
    frames = baseline.finished(baseline.images(baseline.latents(inputs, Sampling.of(request))))
    first_frame = watch.elapsed
    with _written(job, clip) as write, watch.stage("encode"):
        for frame in frames:
            write(frame)
    return JobResult(
        backend="torch eager",
        dtype="fp32",
        frames=len(frames),
        width=clip.width,
        height=clip.height,
        fps=clip.fps,
        windows=clip.plan.windows,
        stage_seconds={name: round(seconds, 4) for name, seconds in watch.seconds.items()},
        total_seconds=watch.elapsed,
        time_to_first_frame=first_frame,
        peak_memory_mib=peak_memory_mib(),
    )


@contextmanager
def _written(job: Job, clip: Any) -> Iterator[Callable[["np.ndarray"], None]]:
    """Takes frames uint8 RGB [H, W, 3] into the MP4 and the file of raw frames."""
    import numpy as np

    from vexpress_trt.runtime.video_output import VideoWriter

    target, sound = Path(job.request.output_path), job.request.audio_path
    with (
        job.frames_path.open("wb") as raw,
        VideoWriter(target, clip.width, clip.height, clip.fps, audio_path=sound, frames=clip.length) as video,
    ):

        def write(frame: "np.ndarray") -> None:
            video.write(frame)
            raw.write(np.ascontiguousarray(frame).data)

        yield write


def main(arguments: list[str]) -> int:
    """Run the job described in the file that is named; exit status 2 with a sentence where it cannot be."""
    job = Job.load(Path(arguments[0]))
    try:
        result = run_generate(job) if job.checkpoints is None else run_baseline(job)
    except UserError as problem:
        print(f"vexpress: error: {problem}", file=sys.stderr)
        return 2
    print(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
