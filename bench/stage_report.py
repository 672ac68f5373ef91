"""The result of `vexpress bench stages`, and what follows from it for a whole clip."""

from dataclasses import dataclass

from vexpress_trt.bench.machine import machine_line
from vexpress_trt.bench.report import Spread, number, table
from vexpress_trt.bench.roofline import Ceiling, Reached
from vexpress_trt.bench.startup import Startup

REAL_TIME_FPS = 25.0


@dataclass(frozen=True)
class StageTiming:
    """One stage, warm: seconds per call over the repeats, and the process's peak memory meanwhile in MiB.

    `unit` says what a call covers, `frames` how many output frames of it (0: it runs once per clip). `first_seconds` is
    the call before the repeats, which compiles where the engine does.
    """

    stage: str
    unit: str
    frames: int
    load_seconds: float
    first_seconds: float
    seconds: Spread
    peak_memory_mib: float

    @property
    def seconds_per_frame(self) -> float | None:
        return self.seconds.median / self.frames if self.frames else None


@dataclass(frozen=True)
class StageReport:
    """All stages of one bundle, the machine and the command that measured them. Times in seconds, memory in MiB.

    `seconds_per_output_frame` adds up denoiser, key points, decoder and median filter, one after the other, for windows
    in the middle of a clip. `time_to_first_frame` is that of a clip with enough windows, in latency order: the start
    (nothing where it was not measured), the calls that the first frame needs, and two frames through decoder and median
    filter, which looks one ahead.
    """

    kind: str
    command: str
    machine: dict[str, object]
    bundle: str
    random_weights: bool
    backend: str
    precision: str
    dtype: str
    threads: int
    image_width: int
    image_height: int
    context_frames: int
    context_overlap: int
    num_inference_steps: int
    guidance_scale: float
    repeats: int
    memory_is_per_stage: bool
    stages: tuple[StageTiming, ...]
    startup: Startup | None
    ceilings: tuple[Ceiling, ...]
    reached: tuple[Reached, ...]
    seconds_per_output_frame: float
    frames_per_second: float
    times_real_time: float
    calls_before_first_frame: int
    time_to_first_frame: float

    def as_markdown(self) -> str:
        """Tables for a terminal or a README."""
        head = (
            f"{self.bundle}: {self.image_width}x{self.image_height}, {self.context_frames} frames per window, guidance "
            f"{self.guidance_scale:g}, on {self.backend} {self.dtype}, {machine_line(self.machine)}"
        )
        return "\n\n".join(
            filter(None, [head, self._stage_table(), self._ceiling_line(), self._startup(), self._clip()])
        )

    def _stage_table(self) -> str:
        shares = {row.stage: row for row in self.reached}
        rows = []
        for stage in self.stages:
            row = shares.get(stage.stage)
            work = [number(row.gflop), number(row.gflops), f"{row.share:.0%}"] if row else ["-", "-", "-"]
            rows.append(
                [
                    stage.stage,
                    stage.unit,
                    f"{stage.load_seconds:.2f}",
                    stage.seconds.text(3),
                    number(stage.seconds_per_frame),
                    *work,
                    f"{stage.peak_memory_mib:.0f}",
                ]
            )
        header = "stage | per | load s | s | s per frame | GFLOP | GFLOP/s | of ceiling | peak MiB"
        return table(header.split(" | "), rows)

    def _ceiling_line(self) -> str:
        if not self.ceilings:
            return ""
        parts = [
            f"{ceiling.dtype} {ceiling.matmul_gflops:.0f} (matrix product) and {ceiling.convolution_gflops:.0f} "
            "(3x3 convolution)"
            for ceiling in self.ceilings
        ]
        return f"Ceilings of {self.backend} here, best of the repeats, in GFLOP/s: {'; '.join(parts)}."

    def _startup(self) -> str:
        if self.startup is None:
            return ""
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in self.startup.parts.items())
        return (
            f"Start of a process to the end of its first denoiser call: {self.startup.seconds.text(3)} s "
            f"({parts}; {self.startup.processes} processes)."
        )

    def _clip(self) -> str:
        return (
            f"{self.num_inference_steps} steps with overlap {self.context_overlap}: "
            f"{self.seconds_per_output_frame:.3f} s per output frame (denoiser, key points, decoder and median filter, "
            f"one after the other), {number(self.frames_per_second)} frames/s, {number(self.times_real_time)} x real "
            f"time at {REAL_TIME_FPS:g} frames/s; first frame after {self.calls_before_first_frame} denoiser calls, "
            f"{self.time_to_first_frame:.1f} s."
        )
