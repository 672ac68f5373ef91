"""`vexpress bench stages`: seconds, memory and reached share of the machine of every stage of a bundle."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from vexpress_trt.bench.flops import count_graph
from vexpress_trt.bench.inputs import latent_sizes, random_inputs
from vexpress_trt.bench.machine import describe_machine
from vexpress_trt.bench.report import Spread, command_line
from vexpress_trt.bench.roofline import Ceiling, Reached, measure_ceilings, reached
from vexpress_trt.bench.stage_report import REAL_TIME_FPS, StageReport, StageTiming
from vexpress_trt.bench.startup import FIELDS, measure_startup
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.call_sizes import CHUNK
from vexpress_trt.engines.cpu import usable_cores
from vexpress_trt.engines.engine import Engine, load_engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.memory import peak_memory_mib, reset_peak
from vexpress_trt.engines.selection import EngineChoice, choose_engines
from vexpress_trt.runtime.median import median_clip
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.runtime.windows import WindowPlan

MEDIAN_FRAMES = 8
AUDIO_SECONDS = 4.0


@dataclass(frozen=True)
class StageSettings:
    """What to measure; None takes the bundle's default, or all cores.

    `startup_repeats`: processes whose start is measured; `roofline`: whether to measure the machine's ceilings.
    """

    bundle: Path
    backend: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    image_width: int | None = None
    image_height: int | None = None
    context_frames: int | None = None
    context_overlap: int = 4
    num_inference_steps: int = 25
    guidance_scale: float = 3.5
    repeats: int = 5
    startup_repeats: int = 3
    roofline: bool = True


def measure_stages(settings: StageSettings) -> StageReport:
    """Run every stage on random input of the asked size. Raises UserError for an unusable bundle or setting."""
    names = (*FIELDS, "context_overlap", "num_inference_steps")
    asked = {name: getattr(settings, name) for name in names}
    GenerationRequest(Path("portrait"), Path("audio"), **asked).validate()
    bundle = Bundle.open(settings.bundle)
    model = bundle.manifest.model
    choice = choose_engines(bundle, backend=settings.backend, dtype=settings.dtype)
    frames = settings.context_frames or model.context_frames
    if settings.context_overlap >= frames:
        raise UserError(f"--context_overlap {settings.context_overlap}: must be smaller than {frames}, the window.")
    if settings.repeats < 1:
        raise UserError(f"--repeats {settings.repeats}: must be 1 or more.")
    startup = measure_startup(settings.startup_repeats, **{name: getattr(settings, name) for name in FIELDS})

    latent = latent_sizes(model, settings.image_width, settings.image_height)
    bench = _Bench(bundle, choice, settings)
    denoiser = "denoiser_guided" if settings.guidance_scale > 1.0 else "denoiser_single"
    bench.graph("vae_encoder", "clip", 0, latent)
    reference = bench.graph("reference", "clip", 0, latent)
    samples = int(AUDIO_SECONDS * model.audio_sample_rate)
    bench.graph("audio_encoder", f"{AUDIO_SECONDS:g} s of speech", 0, {"S": samples})
    bench.graph("audio_projection", f"{CHUNK} frames", CHUNK, {"N": CHUNK})
    bench.graph("kps_guider", f"{CHUNK} frames", CHUNK, {"N": CHUNK, **latent})
    bench.graph(denoiser, "window and step", frames, {"B": 1, "F": frames, **latent}, reference)
    bench.graph("vae_decoder", "frame", 1, {"N": 1, **latent})
    height, width = (latent[axis] * model.vae_scale_factor for axis in "hw")
    bench.median_filter(height, width)

    ceilings = measure_ceilings(choice, bundle.manifest, threads=settings.threads) if settings.roofline else ()
    ceiling = next((ceiling for ceiling in ceilings if ceiling.dtype == choice.dtype), None)
    return StageReport(
        kind="stages",
        command=command_line(),
        machine=describe_machine(),
        bundle=settings.bundle.name,
        random_weights=bundle.manifest.random_weights,
        backend=choice.backend,
        precision=choice.precision,
        dtype=choice.dtype,
        threads=settings.threads or usable_cores(),
        image_width=width,
        image_height=height,
        context_frames=frames,
        context_overlap=settings.context_overlap,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        repeats=settings.repeats,
        memory_is_per_stage=bench.memory_is_per_stage,
        stages=tuple(bench.stages),
        startup=startup,
        ceilings=ceilings,
        reached=bench.reached(ceiling) if ceiling else (),
        **_whole_clip(
            {stage.stage: stage for stage in bench.stages},
            denoiser,
            WindowPlan(frames, settings.context_overlap, 1),
            settings.num_inference_steps,
            startup.seconds.median if startup else 0.0,
        ),
    )


class _Bench:
    """Collects the stages as they are measured, each with only its own engine in memory."""

    def __init__(self, bundle: Bundle, choice: EngineChoice, settings: StageSettings) -> None:
        self.bundle = bundle
        self.choice = choice
        self.settings = settings
        self.stages: list[StageTiming] = []
        self.sizes: dict[str, dict[str, int]] = {}
        self.memory_is_per_stage = reset_peak()

    def graph(
        self, name: str, unit: str, frames: int, sizes: dict[str, int], given: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Measure a graph's engine on random inputs, and these `given` ones; returns its outputs."""
        with self._loaded(name) as (engine, load):
            engine.bind(**random_inputs(engine.spec, sizes, given=given))
            self._record(name, unit, frames, load, engine.run)
            self.sizes[name] = sizes
            return {name: array.copy() for name, array in engine.run().items()}

    def median_filter(self, height: int, width: int) -> None:
        """Measure the filter on random pictures."""
        reset_peak()
        clip = np.random.default_rng(0).integers(0, 256, (MEDIAN_FRAMES, height, width, 3), dtype=np.uint8)
        threads = self.settings.threads or 0
        self._record(
            "median_filter", f"{MEDIAN_FRAMES} frames", MEDIAN_FRAMES, 0.0, lambda: median_clip(clip, threads=threads)
        )

    def reached(self, ceiling: Ceiling) -> tuple[Reached, ...]:
        """Every graph's median call against the ceiling."""
        seconds = {stage.stage: stage.seconds.median for stage in self.stages}
        counts = {
            name: count_graph(self.bundle, self.bundle.graph(name, self.choice.precision), sizes)
            for name, sizes in self.sizes.items()
        }
        return tuple(reached(name, count, seconds[name], ceiling) for name, count in counts.items())

    @contextmanager
    def _loaded(self, graph: str) -> Iterator[tuple[Engine, float]]:
        reset_peak()
        began = perf_counter()
        with load_engine(
            self.bundle,
            graph,
            backend=self.choice.backend,
            precision=self.choice.precision,
            threads=self.settings.threads,
            dtype=self.choice.dtype,
        ) as engine:
            yield engine, perf_counter() - began

    def _record(self, stage: str, unit: str, frames: int, load: float, call: Callable[[], object]) -> None:
        first, *seconds = (_timed(call) for _ in range(1 + self.settings.repeats))
        self.stages.append(StageTiming(stage, unit, frames, load, first, Spread.of(seconds), peak_memory_mib()))


def _timed(call: Callable[[], object]) -> float:
    began = perf_counter()
    call()
    return perf_counter() - began


def _whole_clip(
    stages: dict[str, StageTiming], denoiser: str, plan: WindowPlan, steps: int, start: float
) -> dict[str, float | int]:
    """What the medians add up to for a clip with many windows like the plan's one."""
    call, decoder = stages[denoiser].seconds.median, stages["vae_decoder"]
    behind = decoder.seconds.median + stages["median_filter"].seconds_per_frame
    per_frame = steps * call / plan.stride + stages["kps_guider"].seconds_per_frame + behind
    calls = steps + plan.reach * steps * (steps - 1) // 2
    # The start holds the first call already, with all it needs.
    waiting = start + (calls - 1 if start else calls) * call
    return {
        "seconds_per_output_frame": per_frame,
        "frames_per_second": 1 / per_frame,
        "times_real_time": 1 / per_frame / REAL_TIME_FPS,
        "calls_before_first_frame": calls,
        "time_to_first_frame": waiting + decoder.load_seconds + decoder.first_seconds + behind,
    }
