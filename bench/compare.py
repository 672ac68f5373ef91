"""`vexpress bench compare`: a whole job by the original's order of work and by the engines, in turns.

Every job is a process of its own and is timed from its start to its end. In each round all contenders run one after the
other, and each round begins with another one, so that whatever else the machine does hits all of them. All of them work
with `--compat upstream`: then each makes the same frames from the same noise, and the pictures can be compared.
"""

import logging
import os
import tempfile
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from vexpress_trt.bench.compare_report import CompareReport, Contender
from vexpress_trt.bench.fresh import Finished, run_fresh
from vexpress_trt.bench.job import Job, JobResult
from vexpress_trt.bench.likeness import PictureLikeness, compare_frames
from vexpress_trt.bench.machine import describe_machine
from vexpress_trt.bench.report import Spread, command_line, require_file
from vexpress_trt.bench.speech import write_speech
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.cpu import usable_cores
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import sha256_file
from vexpress_trt.engines.selection import choose_engines
from vexpress_trt.runtime.request import GenerationRequest

log = logging.getLogger("vexpress")
BASELINE, DEFAULT, FP32 = "baseline", "default", "fp32"
_NEEDED = ("torch", "diffusers", "transformers", "safetensors", "scipy")
_BUSY = 0.7  # a load average above which something else must be running
_COMPARED_FILE = "v-express/v_kps_guider.bin"  # the smallest of the checkpoints


@dataclass(frozen=True)
class CompareSettings:
    """The job, the checkpoints that its bundle was exported from, and how often to run it.

    `request`: portrait, speech and settings; its backend and dtype are those of the default contender. `seconds`: the
    speech is cut or repeated to this length (None: taken as it is).
    """

    request: GenerationRequest
    checkpoints: Path
    seconds: float | None = None
    repeats: int = 3


def compare(settings: CompareSettings) -> CompareReport:
    """Run all contenders. Raises UserError for what is missing or cannot be used, and where a job fails."""
    bundle = _checked(settings)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > _BUSY:
        log.warning(f"other work runs on this machine (load {load:.1f}): these times will say little")
    with tempfile.TemporaryDirectory(prefix="vexpress-compare-") as name:
        folder = Path(name)
        jobs = _jobs(settings, bundle, folder)
        runs: dict[str, list[Finished]] = {contender: [] for contender in jobs}
        for number in range(settings.repeats):
            for contender in _rotated(list(jobs), number):
                description = jobs[contender].save(folder / "job.json")
                run = run_fresh("vexpress_trt.bench.job", [str(description)], contender)
                runs[contender].append(run)
                log.info(f"round {number + 1} of {settings.repeats}: {contender} {run.seconds:.1f} s")
        pictures = {contender: job.frames_path for contender, job in jobs.items()}
        contenders = tuple(_contender(contender, runs, pictures) for contender in jobs)
    return _report(settings, bundle, JobResult(**runs[BASELINE][0].result), contenders, load)


def _checked(settings: CompareSettings) -> Bundle:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(
            f"the baseline needs {', '.join(missing)}: install them with `pip install 'vexpress-trt[export,bench]'`"
        )
    if settings.repeats < 1:
        raise UserError(f"--repeats {settings.repeats}: must be 1 or more.")
    request = settings.request
    request.validate()
    for flag in ("reference_image_path", "audio_path", *(["kps_path"] if request.kps_path else [])):
        require_file(getattr(request, flag), f"--{flag}")
    bundle = Bundle.open(request.bundle)
    expected = bundle.manifest.provenance.get("checkpoints", {}).get(_COMPARED_FILE)
    found = settings.checkpoints / _COMPARED_FILE
    require_file(found, "--checkpoints")
    if expected not in (None, sha256_file(found)):
        raise UserError(f"{request.bundle} was exported from other checkpoints than {settings.checkpoints}.")
    return bundle


def _jobs(settings: CompareSettings, bundle: Bundle, folder: Path) -> dict[str, Job]:
    """{contender: its job}; there is no FP32 contender of its own where the default computes in FP32."""
    request = replace(settings.request, compat="upstream", portrait_cache="off")
    if settings.seconds is not None:
        speech = write_speech(request.audio_path, settings.seconds, folder / "speech.wav")
        request = replace(request, audio_path=speech)
    contenders = {BASELINE: request, DEFAULT: request, FP32: replace(request, dtype="fp32")}
    if choose_engines(bundle, backend=request.backend, dtype=request.dtype).dtype == "fp32":
        del contenders[FP32]
    return {
        name: Job(
            replace(own, output_path=folder / f"{name}.mp4"),
            folder / f"{name}.rgb",
            settings.checkpoints if name == BASELINE else None,
        )
        for name, own in contenders.items()
    }


def _rotated(names: list[str], number: int) -> list[str]:
    first = number % len(names)
    return names[first:] + names[:first]


def _contender(name: str, runs: dict[str, list[Finished]], pictures: dict[str, Path]) -> Contender:
    results = [JobResult(**run.result) for run in runs[name]]
    seconds = [run.seconds for run in runs[name]]
    paired = [other.seconds / own for other, own in zip(runs[BASELINE], seconds, strict=True)]
    ratio = median(run.seconds for run in runs[BASELINE]) / median(seconds)
    exact = FP32 if FP32 in pictures else DEFAULT
    stages = results[0].stage_seconds
    return Contender(
        name=name,
        backend=results[0].backend,
        dtype=results[0].dtype,
        round_seconds=tuple(seconds),
        seconds=Spread.of(seconds),
        seconds_per_frame=median(seconds) / results[0].frames,
        frames_per_second=results[0].frames / median(seconds),
        speedup=Spread(ratio, min(paired), max(paired)),
        time_to_first_frame=median(result.time_to_first_frame for result in results),
        peak_memory_mib=max(result.peak_memory_mib for result in results),
        stage_seconds={stage: median(result.stage_seconds.get(stage, 0.0) for result in results) for stage in stages},
        against_baseline=_likeness(pictures, name, BASELINE),
        against_fp32=_likeness(pictures, name, exact),
    )


def _likeness(pictures: dict[str, Path], name: str, other: str) -> PictureLikeness | None:
    return None if name == other else compare_frames(pictures[name], pictures[other])


def _report(
    settings: CompareSettings, bundle: Bundle, job: JobResult, contenders: tuple[Contender, ...], load: float
) -> CompareReport:
    request, model = settings.request, bundle.manifest.model
    return CompareReport(
        kind="compare",
        command=command_line(),
        machine=describe_machine(),
        bundle=Path(request.bundle).name,
        random_weights=bundle.manifest.random_weights,
        threads=request.threads or usable_cores(),
        image_width=job.width,
        image_height=job.height,
        frames=job.frames,
        windows=job.windows,
        fps=job.fps,
        context_frames=request.context_frames or model.context_frames,
        context_overlap=request.context_overlap,
        window_batch=request.window_batch,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        repeats=settings.repeats,
        load_at_start=load,
        contenders=contenders,
    )
