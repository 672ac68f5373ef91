"""`vexpress bench`: seconds and peak memory of every stage of a bundle on this machine."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from vexpress_trt.bench.machine import describe_machine
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.dims import evaluate
from vexpress_trt.engines.engine import Engine, load_engine
from vexpress_trt.engines.files import atomic_path
from vexpress_trt.engines.manifest import TensorSpec
from vexpress_trt.engines.memory import peak_memory_mib, reset_peak
from vexpress_trt.engines.selection import choose_engines
from vexpress_trt.runtime.median import median_clip

GUIDER_FRAMES = 8
MEDIAN_FRAMES = 8
AUDIO_SECONDS = 4.0


@dataclass(frozen=True)
class BenchSettings:
    """What to measure; None takes the bundle's default."""

    bundle: Path
    backend: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    image_width: int | None = None
    image_height: int | None = None
    context_frames: int | None = None
    num_inference_steps: int = 25
    guidance_scale: float = 3.5
    repeats: int = 5


@dataclass(frozen=True)
class StageTiming:
    """One stage: seconds per call over the repeats after one warm-up call, and the process's peak memory meanwhile."""

    stage: str
    unit: str
    load_seconds: float
    median_seconds: float
    min_seconds: float
    max_seconds: float
    peak_memory_mib: float


@dataclass(frozen=True)
class BenchReport:
    """All stages of one bundle, the machine and the command that measured them."""

    command: str
    machine: dict[str, object]
    bundle: str
    random_weights: bool
    backend: str
    precision: str
    dtype: str
    image_width: int
    image_height: int
    context_frames: int
    num_inference_steps: int
    guidance_scale: float
    repeats: int
    memory_is_per_stage: bool
    stages: tuple[StageTiming, ...]
    seconds_per_output_frame: float

    def as_markdown(self) -> str:
        """A table for a terminal or a README."""
        lines = [
            f"{self.bundle}: {self.image_width}x{self.image_height}, {self.context_frames} frames per window, guidance "
            f"{self.guidance_scale:g}, on {self.backend} {self.dtype}, "
            f"{self.machine['cores']} cores of {self.machine['cpu']}",
            "",
            "| stage | per | load s | median s | min s | max s | peak MiB |",
            "|---|---|---|---|---|---|---|",
        ]
        for stage in self.stages:
            lines.append(
                f"| {stage.stage} | {stage.unit} | {stage.load_seconds:.2f} | {stage.median_seconds:.4f} | "
                f"{stage.min_seconds:.4f} | {stage.max_seconds:.4f} | {stage.peak_memory_mib:.0f} |"
            )
        lines += [
            "",
            f"{self.num_inference_steps} steps with overlap 4: {self.seconds_per_output_frame:.3f} s per output frame "
            "(denoiser, key points, decoder and median filter, one after the other).",
        ]
        return "\n".join(lines)


def run_bench(settings: BenchSettings, *, json_path: Path | None = None) -> BenchReport:
    """Measure, print the table and, where asked, write the report as JSON. Raises UserError for an unusable bundle."""
    report = measure(settings)
    print(report.as_markdown())
    if json_path is not None:
        with atomic_path(json_path) as temporary:
            temporary.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    return report


def measure(settings: BenchSettings) -> BenchReport:
    """Run every stage on random input of the asked size."""
    bundle = Bundle.open(settings.bundle)
    model = bundle.manifest.model
    choice = choose_engines(bundle, backend=settings.backend, dtype=settings.dtype)
    width, height = settings.image_width or model.image_width, settings.image_height or model.image_height
    frames = settings.context_frames or model.context_frames
    guided = settings.guidance_scale > 1.0
    latent = {"h": height // model.vae_scale_factor, "w": width // model.vae_scale_factor}
    per_stage_memory = reset_peak()
    stages: list[StageTiming] = []
    rng = np.random.default_rng(0)

    @contextmanager
    def loaded(graph: str) -> Iterator[tuple[Engine, float]]:
        reset_peak()
        began = perf_counter()
        with load_engine(
            bundle,
            graph,
            backend=choice.backend,
            precision=choice.precision,
            threads=settings.threads,
            dtype=choice.dtype,
        ) as engine:
            yield engine, perf_counter() - began

    def record(stage: str, unit: str, load: float, call: Callable[[], object]) -> None:
        call()
        seconds = []
        for _ in range(settings.repeats):
            began = perf_counter()
            call()
            seconds.append(perf_counter() - began)
        stages.append(StageTiming(stage, unit, load, median(seconds), min(seconds), max(seconds), peak_memory_mib()))

    def measure_graph(graph: str, unit: str, sizes: dict[str, int], **given: np.ndarray) -> dict[str, np.ndarray]:
        with loaded(graph) as (engine, load):
            inputs = {
                spec.name: _random_input(spec, sizes, rng) for spec in engine.spec.inputs if spec.name not in given
            }
            engine.bind(**given, **inputs)
            record(graph, unit, load, engine.run)
            return {name: array.copy() for name, array in engine.run().items()}

    samples = int(AUDIO_SECONDS * model.audio_sample_rate)
    measure_graph("vae_encoder", "clip", latent)
    keys_values = measure_graph("reference", "clip", latent)
    measure_graph("audio_encoder", f"{AUDIO_SECONDS:g} s of speech", {"S": samples})
    measure_graph("audio_projection", f"{GUIDER_FRAMES} frames", {"N": GUIDER_FRAMES})
    measure_graph("kps_guider", f"{GUIDER_FRAMES} frames", {"N": GUIDER_FRAMES, **latent})
    denoiser = "denoiser_guided" if guided else "denoiser_single"
    measure_graph(denoiser, "window and step", {"B": 1, "F": frames, **latent}, **keys_values)
    measure_graph("vae_decoder", "frame", {"N": 1, **latent})
    reset_peak()
    clip = rng.integers(0, 256, (MEDIAN_FRAMES, height, width, 3), dtype=np.uint8)
    record("median_filter", f"{MEDIAN_FRAMES} frames", 0.0, lambda: median_clip(clip))

    by_name = {stage.stage: stage.median_seconds for stage in stages}
    fresh = max(frames - 4, 1)  # frames a window adds with upstream's overlap of 4
    per_frame = (
        settings.num_inference_steps * by_name[denoiser] / fresh
        + by_name["kps_guider"] / GUIDER_FRAMES
        + by_name["vae_decoder"]
        + by_name["median_filter"] / MEDIAN_FRAMES
    )
    return BenchReport(
        command=shlex.join(["vexpress", *sys.argv[1:]]),
        machine=describe_machine(),
        bundle=settings.bundle.name,
        random_weights=bundle.manifest.random_weights,
        backend=choice.backend,
        precision=choice.precision,
        dtype=choice.dtype,
        image_width=width,
        image_height=height,
        context_frames=frames,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        repeats=settings.repeats,
        memory_is_per_stage=per_stage_memory,
        stages=tuple(stages),
        seconds_per_output_frame=per_frame,
    )


def _random_input(spec: TensorSpec, sizes: dict[str, int], rng: np.random.Generator) -> np.ndarray:
    shape = [evaluate(dimension, sizes) for dimension in spec.shape]
    if spec.name == "timestep":
        return np.full(shape, 500.0, np.float32)
    if spec.name.endswith("_weight"):
        return np.ones(shape, np.float32)
    import ml_dtypes

    dtype = np.dtype(ml_dtypes.bfloat16) if spec.dtype == "bfloat16" else np.dtype(spec.dtype)
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype)
