"""`vexpress bench sweep`: how speed, memory and the wait for the first frame follow clip length, batch and threads.

One thing varies at a time; each run is `vexpress generate --json` in a process of its own.
"""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

from vexpress_trt.bench.fresh import Finished, run_fresh
from vexpress_trt.bench.machine import describe_machine, machine_line
from vexpress_trt.bench.report import Spread, command_line, number, require_file, table
from vexpress_trt.bench.speech import write_speech
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.cpu import usable_cores
from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.request import GenerationRequest

log = logging.getLogger("vexpress")
LENGTH, WINDOW_BATCH, THREADS = "length", "window_batch", "threads"


@dataclass(frozen=True)
class SweepSettings:
    """What varies: seconds of speech (the request's, cut or repeated), windows per call, CPU threads.

    Batches and threads are swept at the first length, with everything else as in `request`.
    """

    request: GenerationRequest
    lengths: tuple[float, ...] = (20.0, 60.0, 600.0)
    window_batches: tuple[int, ...] = ()
    thread_counts: tuple[int, ...] = ()
    repeats: int = 1


@dataclass(frozen=True)
class SweepPoint:
    """One setting over all rounds. `seconds` are of whole processes; `time_to_first_frame` counts from when the inputs
    were opened; `peak_memory_mib` is the largest of all rounds."""

    varied: str
    value: float
    audio_seconds: float
    window_batch: int
    threads: int
    frames: int
    windows: int
    seconds: Spread
    frames_per_second: float
    time_to_first_frame: float
    denoiser_calls: int
    denoiser_calls_before_first_frame: int
    peak_memory_mib: float
    stage_seconds: dict[str, float]


@dataclass(frozen=True)
class SweepReport:
    """All points, the machine and the command that measured them."""

    kind: str
    command: str
    machine: dict[str, object]
    bundle: str
    random_weights: bool
    backend: str
    dtype: str
    image_width: int
    image_height: int
    context_frames: int
    context_overlap: int
    num_inference_steps: int
    guidance_scale: float
    save_gpu_memory: bool
    repeats: int
    points: tuple[SweepPoint, ...]

    def as_markdown(self) -> str:
        """A table for a terminal or a README."""
        spared = ", --save_gpu_memory" if self.save_gpu_memory else ""
        head = (
            f"{self.bundle}: {self.image_width}x{self.image_height}, windows of {self.context_frames} (overlap "
            f"{self.context_overlap}), {self.num_inference_steps} steps, guidance {self.guidance_scale:g}, on "
            f"{self.backend} {self.dtype}{spared}; whole processes, {self.repeats} each, {machine_line(self.machine)}"
        )
        header = (
            "varied | audio s | frames | batch | threads | s | frames/s | first frame s | calls before it | peak MiB"
        )
        rows = [
            [
                f"{point.varied} {point.value:g}",
                f"{point.audio_seconds:g}",
                str(point.frames),
                str(point.window_batch),
                str(point.threads),
                number(point.seconds.median) if self.repeats == 1 else point.seconds.text(),
                number(point.frames_per_second),
                number(point.time_to_first_frame),
                f"{point.denoiser_calls_before_first_frame} of {point.denoiser_calls}",
                f"{point.peak_memory_mib:.0f}",
            ]
            for point in self.points
        ]
        return f"{head}\n\n{table(header.split(' | '), rows)}"


@dataclass(frozen=True)
class _Setting:
    varied: str
    value: float
    seconds: float
    request: GenerationRequest


def sweep(settings: SweepSettings) -> SweepReport:
    """Run all points, in as many rounds as asked. Raises UserError for unusable inputs and where a run fails."""
    request = settings.request
    if not settings.lengths or settings.repeats < 1:
        raise UserError("--lengths and --repeats: give at least one length, and one repeat or more.")
    request.validate()
    for flag in ("reference_image_path", "audio_path", *(["kps_path"] if request.kps_path else [])):
        require_file(getattr(request, flag), f"--{flag}")
    bundle = Bundle.open(request.bundle)
    wanted = list(_settings(settings))
    for setting in wanted:
        setting.request.validate()
    runs: list[list[Finished]] = [[] for _ in wanted]
    with tempfile.TemporaryDirectory(prefix="vexpress-sweep-") as name:
        for _ in range(settings.repeats):
            for setting, done in zip(wanted, runs, strict=True):
                done.append(_run(setting, Path(name)))
    one = runs[0][0].result
    return SweepReport(
        kind="sweep",
        command=command_line(),
        machine=describe_machine(),
        bundle=bundle.root.name,
        random_weights=bundle.manifest.random_weights,
        backend=one["backend"],
        dtype=one["dtype"],
        image_width=one["width"],
        image_height=one["height"],
        context_frames=one["context_frames"],
        context_overlap=one["context_overlap"],
        num_inference_steps=one["num_inference_steps"],
        guidance_scale=one["guidance_scale"],
        save_gpu_memory=request.save_gpu_memory,
        repeats=settings.repeats,
        points=tuple(_point(setting, done) for setting, done in zip(wanted, runs, strict=True)),
    )


def _settings(settings: SweepSettings) -> Iterator[_Setting]:
    request = replace(settings.request, portrait_cache="off")
    first = settings.lengths[0]
    for seconds in settings.lengths:
        yield _Setting(LENGTH, seconds, seconds, request)
    for batch in settings.window_batches:
        yield _Setting(WINDOW_BATCH, batch, first, replace(request, window_batch=batch))
    for threads in settings.thread_counts:
        yield _Setting(THREADS, threads, first, replace(request, threads=threads))


def _run(setting: _Setting, folder: Path) -> Finished:
    speech = folder / f"speech_{setting.seconds:g}.wav"
    if not speech.exists():
        write_speech(setting.request.audio_path, setting.seconds, speech)
    request = replace(setting.request, audio_path=speech, output_path=folder / "clip.mp4")
    what = f"{setting.varied} {setting.value:g}"
    run = run_fresh("vexpress_trt.cli", ["generate", *generate_flags(request), "--json", "--quiet"], what)
    log.info(f"{what}: {run.seconds:.1f} s, peak memory {run.result['peak_memory_mib']:.0f} MiB")
    return run


def generate_flags(request: GenerationRequest) -> list[str]:
    """The flags of `vexpress generate` that make this request."""
    flags = []
    for spec in fields(GenerationRequest):
        value = getattr(request, spec.name)
        if value == spec.default:
            continue
        flags += [f"--{spec.name}"] if value is True else [f"--{spec.name}", str(value)]
    return flags


def _point(setting: _Setting, runs: list[Finished]) -> SweepPoint:
    results: list[dict[str, Any]] = [run.result for run in runs]
    seconds, one = Spread.of(run.seconds for run in runs), results[0]
    return SweepPoint(
        varied=setting.varied,
        value=setting.value,
        audio_seconds=setting.seconds,
        window_batch=setting.request.window_batch,
        threads=setting.request.threads or usable_cores(),
        frames=one["frames"],
        windows=one["windows"],
        seconds=seconds,
        frames_per_second=one["frames"] / seconds.median,
        time_to_first_frame=median(result["time_to_first_frame"] for result in results),
        denoiser_calls=one["denoiser_calls"],
        denoiser_calls_before_first_frame=one["denoiser_calls_before_first_frame"],
        peak_memory_mib=max(result["peak_memory_mib"] for result in results),
        stage_seconds=one["stage_seconds"],
    )
