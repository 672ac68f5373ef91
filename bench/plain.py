"""`vexpress bench plain`: what the exact savings in the graphs are worth, with nothing else different.

The denoiser of a bundle and that of one exported with `--plain` (same checkpoints, the reference's taps in place of
keys and values, both halves computed whole) are called in turns on one engine, on the same latents, tokens and
portrait.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from vexpress_trt.bench.flops import FlopCount, count_graph
from vexpress_trt.bench.inputs import latent_sizes, random_inputs
from vexpress_trt.bench.likeness import TensorLikeness, compare_tensors
from vexpress_trt.bench.machine import describe_machine, machine_line
from vexpress_trt.bench.report import Spread, command_line, number, table
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.cpu import usable_cores
from vexpress_trt.engines.engine import Engine, load_engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.selection import EngineChoice, choose_engines
from vexpress_trt.runtime.request import GenerationRequest


@dataclass(frozen=True)
class PlainSettings:
    """Both bundles and the call's size; None takes the bundle's default, or all cores."""

    exact: Path
    plain: Path
    backend: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    image_width: int | None = None
    image_height: int | None = None
    context_frames: int | None = None
    guidance_scale: float = 3.5
    repeats: int = 5


@dataclass(frozen=True)
class DenoiserCall:
    """One denoiser: seconds of a call, and its operations."""

    bundle: str
    seconds: Spread
    flop: FlopCount
    gflop: float


@dataclass(frozen=True)
class PlainReport:
    """Both denoisers in turns. `speedup`: the plain one's median over the exact one's, with the smallest and largest
    ratio of a pair; `likeness`: the exact one's prediction against the plain one's."""

    kind: str
    command: str
    machine: dict[str, object]
    random_weights: bool
    backend: str
    dtype: str
    threads: int
    image_width: int
    image_height: int
    context_frames: int
    guidance_scale: float
    repeats: int
    exact: DenoiserCall
    plain: DenoiserCall
    speedup: Spread
    likeness: TensorLikeness

    def as_markdown(self) -> str:
        """A table for a terminal or a README."""
        same = self.likeness.snr_db is None
        alike = (
            "identical" if same else f"{self.likeness.snr_db:.1f} dB, at most {self.likeness.largest_difference:.2g}"
        )
        head = (
            f"One denoiser call at {self.image_width}x{self.image_height}, {self.context_frames} frames, guidance "
            f"{self.guidance_scale:g}, on {self.backend} {self.dtype}, median of {self.repeats} in turns (min-max), "
            f"{machine_line(self.machine)}"
        )
        faster = f"{self.speedup.median:.2f} ({self.speedup.min:.2f}-{self.speedup.max:.2f})"
        rows = [
            ["without savings", self.plain.seconds.text(), number(self.plain.gflop), "1", "-"],
            ["exact savings", self.exact.seconds.text(), number(self.exact.gflop), faster, alike],
        ]
        return f"{head}\n\n{table(['graph', 's', 'GFLOP', 'times as fast', 'difference'], rows)}"


def compare_plain(settings: PlainSettings) -> PlainReport:
    """Time both denoisers. Raises UserError for bundles that are not such a pair, and for an unusable setting."""
    names = "backend dtype threads image_width image_height context_frames guidance_scale".split()
    call = {name: getattr(settings, name) for name in names}
    GenerationRequest(Path("portrait"), Path("audio"), context_overlap=0, **call).validate()
    exact, plain = Bundle.open(settings.exact), Bundle.open(settings.plain)
    _check_pair(settings, exact, plain)
    model = exact.manifest.model
    choice = choose_engines(exact, backend=settings.backend, dtype=settings.dtype)
    latent = latent_sizes(model, settings.image_width, settings.image_height)
    sizes = {"B": 1, "F": settings.context_frames or model.context_frames, **latent}
    graph = "denoiser_guided" if settings.guidance_scale > 1.0 else "denoiser_single"
    portrait = np.random.default_rng(1).standard_normal((1, 4, latent["h"], latent["w"]), dtype=np.float32)

    def bound(bundle: Bundle, stack: ExitStack) -> Engine:
        with _load(bundle, "reference", choice, settings.threads) as reference:
            given = {name: array.copy() for name, array in reference.run(latent=portrait).items()}
        engine = stack.enter_context(_load(bundle, graph, choice, settings.threads))
        engine.bind(**random_inputs(engine.spec, sizes, given=given))
        return engine

    with ExitStack() as stack:
        engines = [bound(exact, stack), bound(plain, stack)]
        predictions = [engine.run()["prediction"].copy() for engine in engines]
        seconds: list[list[float]] = [[], []]
        for turn in range(settings.repeats):
            for which in (0, 1) if turn % 2 else (1, 0):
                began = perf_counter()
                engines[which].run()
                seconds[which].append(perf_counter() - began)
    calls = [
        _call(bundle, bundle.graph(graph, choice.precision), sizes, times)
        for bundle, times in zip((exact, plain), seconds, strict=True)
    ]
    paired = [slow / fast for fast, slow in zip(*seconds, strict=True)]
    return PlainReport(
        kind="plain",
        command=command_line(),
        machine=describe_machine(),
        random_weights=exact.manifest.random_weights,
        backend=choice.backend,
        dtype=choice.dtype,
        threads=settings.threads or usable_cores(),
        image_width=latent["w"] * model.vae_scale_factor,
        image_height=latent["h"] * model.vae_scale_factor,
        context_frames=sizes["F"],
        guidance_scale=settings.guidance_scale,
        repeats=settings.repeats,
        exact=calls[0],
        plain=calls[1],
        speedup=Spread(median(seconds[1]) / median(seconds[0]), min(paired), max(paired)),
        likeness=compare_tensors(predictions[0], predictions[1]),
    )


def _check_pair(settings: PlainSettings, exact: Bundle, plain: Bundle) -> None:
    if settings.repeats < 1:
        raise UserError(f"--repeats {settings.repeats}: must be 1 or more.")
    ours, theirs = exact.manifest.provenance, plain.manifest.provenance
    if "form" in ours or theirs.get("form") != "plain":
        raise UserError(
            f"{settings.exact} and {settings.plain} are no pair: give a bundle and then one of the same checkpoints "
            "made with `vexpress export --plain`."
        )
    if ours.get("checkpoints") != theirs.get("checkpoints"):
        raise UserError(f"{settings.exact} and {settings.plain} were exported from different checkpoints.")


def _load(bundle: Bundle, graph: str, choice: EngineChoice, threads: int | None) -> Engine:
    return load_engine(
        bundle, graph, backend=choice.backend, precision=choice.precision, threads=threads, dtype=choice.dtype
    )


def _call(bundle: Bundle, spec: GraphSpec, sizes: dict[str, int], seconds: list[float]) -> DenoiserCall:
    flop = count_graph(bundle, spec, sizes)
    return DenoiserCall(bundle.root.name, Spread.of(seconds), flop, flop.total / 1e9)
