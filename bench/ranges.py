"""The largest values inside a bundle's graphs over a real run: what FP16 can hold, and where it needs FP32's range.

    vexpress bench ranges BUNDLE --reference_image_path ref.jpg --audio_path aud.mp3 --json ranges.json

onnxruntime computes a clip in FP32 while all floating-point tensors of every graph are outputs as well. As many as
memory allows are looked at in one pass over the clip; further ones in further passes, which repeat the same numbers.
"""

import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from vexpress_trt.bench.machine import describe_machine
from vexpress_trt.bench.report import command_line, table
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.engine import Engine
from vexpress_trt.engines.intermediates import Inner, Probe, pieces
from vexpress_trt.engines.manifest import ModelConfig
from vexpress_trt.engines.onnxruntime_engine import OnnxRuntimeEngine
from vexpress_trt.runtime.engine_pool import EnginePool, Key
from vexpress_trt.runtime.generation import generate
from vexpress_trt.runtime.request import GenerationRequest

FP16_LARGEST = 65504.0
NEAR = 1e4  # a factor of 6.5 below it
SQUARE_FITS = 256.0  # larger ones squared, as in a variance, are beyond FP16
NORMS = ("GroupNormalization", "LayerNormalization", "InstanceNormalization")
ROOM = 1 << 30  # bytes of a graph's tensors looked at in one pass
_SHOWN = 40


@dataclass(frozen=True)
class TensorRange:
    """The largest absolute value that a tensor had in any call."""

    tensor: str
    node: str
    operator: str
    max_abs: float


@dataclass(frozen=True)
class GraphRanges:
    """One graph over all its calls. `largest`: its tensors with the largest values; `by_operator`: the largest value
    that each kind of node gave; `norm_input`: the largest that a normalisation read, and how many read more than 256.
    """

    graph: str
    calls: int
    tensors: int
    above_fp16: int
    above_near: int
    norm_input: float
    norms: int
    norms_above_256: int
    by_operator: dict[str, float]
    largest: tuple[TensorRange, ...]


@dataclass(frozen=True)
class RangesReport:
    """The values of one clip. `near` is what `above_near` counts from."""

    kind: str
    command: str
    machine: dict[str, object]
    bundle: str
    random_weights: bool
    width: int
    height: int
    frames: int
    denoiser_calls: int
    near: float
    graphs: tuple[GraphRanges, ...] = field(default=())

    def as_markdown(self) -> str:
        """A row for each graph."""
        header = ["graph", "calls", "tensors", "largest value", "above 1e4", "above 65504", "largest into a norm"]
        rows = [
            [
                graph.graph, str(graph.calls), str(graph.tensors),
                f"{graph.largest[0].max_abs:.4g} ({graph.largest[0].node})" if graph.largest else "-",
                str(graph.above_near), str(graph.above_fp16),
                f"{graph.norm_input:.4g} ({graph.norms_above_256} of {graph.norms} above 256)" if graph.norms else "-",
            ]
            for graph in self.graphs
        ]  # fmt: skip
        weights = "random weights" if self.random_weights else "trained weights"
        return f"{self.bundle} ({weights}), {self.frames} frames of {self.width}x{self.height}\n\n" + table(
            header, rows
        )


def measure_ranges(request: GenerationRequest, *, room: int = ROOM) -> RangesReport:
    """Generate the clip of a request, by onnxruntime in FP32, and keep the largest value of every tensor.

    Raises UserError for what generation refuses.
    """
    request = replace(request, backend="onnxruntime", dtype="fp32", device="cpu", portrait_cache="off")
    with tempfile.TemporaryDirectory(prefix="vexpress-ranges-") as folder:
        pool = _RecordingPool(request, Path(folder), room)
        with pool:
            while True:
                generation = generate(request, engines=pool)
                for _ in generation:
                    pass
                if not pool.next_pass():
                    break
        summary, bundle = generation.summary, pool.bundle
        return RangesReport(
            "ranges", command_line(), describe_machine(), bundle.root.name, bundle.manifest.random_weights,
            summary.width, summary.height, summary.frames, summary.denoiser_calls, NEAR, pool.results(),
        )  # fmt: skip


class _RecordingEngine(OnnxRuntimeEngine):
    """Gives the graph's own outputs and keeps the largest value of the others in `maxima`."""

    maxima: dict[str, float]
    calls: int
    own: tuple[str, ...]

    def _execute(self, sizes: dict[str, int]) -> dict[str, np.ndarray]:
        outputs = super()._execute(sizes)
        self.calls += 1
        for name, array in outputs.items():
            largest = max(float(array.max(initial=0.0)), -float(array.min(initial=0.0)))  # without a copy
            self.maxima[name] = max(largest, self.maxima.get(name, 0.0))
        return {name: outputs[name] for name in self.own}


class _RecordingPool(EnginePool):
    """Hands out engines that give all tensors of one pass."""

    def __init__(self, request: GenerationRequest, folder: Path, room: int) -> None:
        super().__init__()
        self.bundle = Bundle.open(request.bundle)
        self._folder, self._room, self._threads = folder, room, request.threads
        self._sizes = _sizes(self.bundle.manifest.model, request)
        self._pass = 0
        self._graphs: dict[str, tuple[Probe, list[list[Inner]]]] = {}
        self._maxima: dict[str, dict[str, float]] = {}
        self._calls: dict[str, int] = {}

    def take(self, key: Key) -> Engine:
        kept = super().take(key)
        if kept is not None:
            return kept
        graph = key[0]
        spec = self.bundle.graph(graph, "fp32")
        if graph not in self._graphs:
            probe = Probe(self.bundle, spec)
            self._graphs[graph] = probe, list(pieces(probe.tensors, self._sizes, self._room))
        probe, passes = self._graphs[graph]
        names = [tensor.name for tensor in passes[self._pass]] if self._pass < len(passes) else []
        bundle, exposed = probe.expose(names, self._folder / f"{graph}-{self._pass}")
        engine = _RecordingEngine(bundle, exposed, threads=self._threads)
        engine.maxima, engine.calls = self._maxima.setdefault(graph, {}), 0
        engine.own = tuple(tensor.name for tensor in spec.outputs)
        return engine

    def give(self, key: Key, engine: Engine) -> None:
        if self._pass == 0:
            self._calls[key[0]] = self._calls.get(key[0], 0) + engine.calls
            engine.calls = 0
        super().give(key, engine)

    def next_pass(self) -> bool:
        """Go on to the tensors that no pass has looked at; False where there are none."""
        self._pass += 1
        for _, engine in self._engines.values():
            engine.close()
        self._engines.clear()
        return any(len(passes) > self._pass for _, passes in self._graphs.values())

    def results(self) -> tuple[GraphRanges, ...]:
        """Every graph that ran, in the manifest's order."""
        names = dict.fromkeys(spec.name for spec in self.bundle.manifest.graphs)
        return tuple(self._ranges(name) for name in names if name in self._graphs)

    def _ranges(self, graph: str) -> GraphRanges:
        probe, maxima = self._graphs[graph][0], self._maxima[graph]
        found = [
            TensorRange(tensor.name, tensor.node, tensor.operator, float(f"{maxima[tensor.name]:.5g}"))
            for tensor in probe.tensors
        ]
        by_operator: dict[str, float] = {}
        for each in found:
            by_operator[each.operator] = max(each.max_abs, by_operator.get(each.operator, 0.0))
        into_norms = [maxima.get(t.sources[0], 0.0) for t in probe.tensors if t.operator in NORMS]
        return GraphRanges(
            graph,
            self._calls.get(graph, 0),
            len(found),
            sum(each.max_abs > FP16_LARGEST for each in found),
            sum(each.max_abs > NEAR for each in found),
            float(f"{max(into_norms, default=0.0):.5g}"),
            len(into_norms),
            sum(value > SQUARE_FITS for value in into_norms),
            dict(sorted(by_operator.items(), key=lambda pair: -pair[1])),
            tuple(sorted(found, key=lambda each: -each.max_abs)[:_SHOWN]),
        )


def _sizes(model: ModelConfig, request: GenerationRequest) -> dict[str, int]:
    """What the symbols of the graphs will be, for an estimate."""
    factor = model.vae_scale_factor
    return {
        "B": request.window_batch,
        "F": request.context_frames or model.context_frames,
        "N": 8,
        "h": (request.image_height or model.image_height) // factor,
        "w": (request.image_width or model.image_width) // factor,
        "S": 10 * model.audio_sample_rate,
    }
