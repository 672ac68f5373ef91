"""The result of `vexpress bench compare`."""

from dataclasses import dataclass

from vexpress_trt.bench.likeness import PictureLikeness
from vexpress_trt.bench.machine import machine_line
from vexpress_trt.bench.report import Spread, number, table


@dataclass(frozen=True)
class Contender:
    """What one way of doing the job took, over all rounds.

    Seconds are of whole processes, from start to end; `speedup` is the ratio of the baseline's median to this one's,
    with the smallest and largest ratio within one round. `time_to_first_frame` counts from when the inputs were opened,
    `peak_memory_mib` is the largest of all rounds, `stage_seconds` are medians. The pictures are those of the last
    round (None: compared with itself).
    """

    name: str
    backend: str
    dtype: str
    round_seconds: tuple[float, ...]
    seconds: Spread
    seconds_per_frame: float
    frames_per_second: float
    speedup: Spread
    time_to_first_frame: float
    peak_memory_mib: float
    stage_seconds: dict[str, float]
    against_baseline: PictureLikeness | None
    against_fp32: PictureLikeness | None


@dataclass(frozen=True)
class CompareReport:
    """All contenders on one job, the machine and the command that ran them.

    `load_at_start` is the machine's load average of the last minute: what else ran. Eager PyTorch suffers most from
    it, as its threads wait for one another after every operation.
    """

    kind: str
    command: str
    machine: dict[str, object]
    bundle: str
    random_weights: bool
    threads: int
    image_width: int
    image_height: int
    frames: int
    windows: int
    fps: float
    context_frames: int
    context_overlap: int
    window_batch: int
    num_inference_steps: int
    guidance_scale: float
    repeats: int
    load_at_start: float
    contenders: tuple[Contender, ...]

    def as_markdown(self) -> str:
        """A table for a terminal or a README."""
        head = (
            f"{self.bundle}: {self.frames} frames of {self.image_width}x{self.image_height} in {self.windows} windows "
            f"of {self.context_frames} (overlap {self.context_overlap}), {self.num_inference_steps} steps, guidance "
            f"{self.guidance_scale:g}; whole processes, median of {self.repeats} rounds (min-max), "
            f"{machine_line(self.machine)}"
        )
        header = (
            "engine | s | s per frame | frames/s | x baseline | first frame s | peak MiB | PSNR to baseline | to FP32"
        )
        rows = [
            [
                f"{row.name}: {row.backend} {row.dtype}",
                row.seconds.text(),
                number(row.seconds_per_frame),
                number(row.frames_per_second),
                f"{row.speedup.median:.2f} ({row.speedup.min:.2f}-{row.speedup.max:.2f})",
                number(row.time_to_first_frame),
                f"{row.peak_memory_mib:.0f}",
                _decibels(row.against_baseline),
                _decibels(row.against_fp32),
            ]
            for row in self.contenders
        ]
        return f"{head}\n\n{table(header.split(' | '), rows)}"


def _decibels(likeness: PictureLikeness | None) -> str:
    if likeness is None:
        return "-"
    return "identical" if likeness.psnr_db is None else f"{likeness.psnr_db:.1f} dB"
