"""The first tensor inside a graph on which two backends, precisions or types of arithmetic part: `verify --bisect`.

Where a graph's outputs differ by more than rounding, all floating-point tensors become outputs, in the order of the
nodes and as many at a time as memory allows; both sides compute them from the same inputs. An engine cannot fuse across
a tensor that it must give, so what only fused kernels get wrong shows in the outputs and nowhere else.
"""

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.intermediates import Probe, pieces
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.selection import choose_backend, choose_precision, engine_class
from vexpress_trt.engines.timestep_table import INPUT as TIMESTEP
from vexpress_trt.engines.verify import read_vectors, threshold_of, vector_inputs, vector_path

BACKENDS = ("onnxruntime", "openvino")
CHUNK_BYTES = 512 << 20  # of tensors that one run gives
_TABULATED = frozenset({TIMESTEP})  # tensors of the timestep alone: openvino has a table in their place


@dataclass(frozen=True)
class Side:
    """One of the two that are compared: `precision` of the graph, `dtype` of the arithmetic; None: the backend's."""

    backend: str
    precision: str | None = None
    dtype: str | None = None

    def __str__(self) -> str:
        return "/".join(filter(None, (self.backend, self.precision, self.dtype)))


@dataclass(frozen=True)
class Divergence:
    """What became of one graph. `snr_db`: the worst of its outputs; it agrees where that reaches `threshold_db`.

    `tensor`, `node` and `operator`: the first tensor below the threshold, with `tensor_snr_db`; `before_db` is the
    worst of what its node reads (300: only weights and inputs, which are the same). All None where there is none.
    `tensors`: how many inside the graph were compared.
    """

    graph: str
    snr_db: float
    threshold_db: float
    tensors: int = 0
    tensor: str | None = None
    node: str | None = None
    operator: str | None = None
    tensor_snr_db: float | None = None
    before_db: float | None = None

    @property
    def agrees(self) -> bool:
        return self.snr_db >= self.threshold_db

    def as_dict(self) -> dict[str, Any]:
        """The fields and `agrees`, for JSON, which has no infinity: None there."""
        fields = {**asdict(self), "agrees": self.agrees}
        return {name: None if value in (math.inf, -math.inf) else value for name, value in fields.items()}


def bisect(
    bundle: Bundle | Path,
    one: Side,
    other: Side,
    *,
    graphs: Sequence[str] | None = None,
    threads: int | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    threshold: float | None = None,
) -> list[Divergence]:
    """Compare every tensor of graphs (None: all) as `one` and `other` compute it; `other` is the reference.

    `threshold` in dB tells rounding from divergence (None: by the coarser of the types). Raises UserError for
    backends whose inside cannot be looked at, for two sides that are the same, and where a graph or an engine cannot be
    had.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    one, other = settled(bundle, one), settled(bundle, other)
    if one == other:
        raise UserError(
            f"--bisect {other.backend}: both sides are {one}; name another backend, or another type or precision with "
            "--bisect_dtype or --bisect_precision"
        )
    names = graphs or dict.fromkeys(spec.name for spec in bundle.manifest.graphs)
    return [_bisect_graph(bundle, name, (one, other), threads, chunk_bytes, threshold) for name in names]


def settled(bundle: Bundle, side: Side) -> Side:
    """The side with its backend and precision chosen. Raises UserError for a backend that cannot be looked into."""
    backend, _ = choose_backend(side.backend, side.dtype or "auto")
    if backend not in BACKENDS:
        raise UserError(f"--bisect looks inside graphs on {' and '.join(BACKENDS)} only, not on {backend}")
    return Side(backend, side.precision or choose_precision(backend, bundle.precisions), side.dtype)


def format_divergences(results: Sequence[Divergence], one: Side, other: Side) -> str:
    """A line for each graph, and for each that diverges where it begins."""
    lines = [f"{one} against {other}"]
    for result in results:
        verdict = "agrees" if result.agrees else "DIVERGES"
        lines.append(f"{result.graph:<17} {result.snr_db:7.1f} dB of {result.threshold_db:.0f} needed: {verdict}")
        if not result.agrees and result.tensor is not None:
            lines.append(
                f"  first at {result.tensor}, of {result.node} ({result.operator}): "
                f"{result.tensor_snr_db:.1f} dB, what it reads {result.before_db:.1f} dB"
            )
        elif not result.agrees:
            lines.append(f"  none of its {result.tensors} tensors does when they are asked for: look at fused kernels")
    return "\n".join(lines)


def signal_to_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """In dB, at most 300; -inf for other shapes and where not the same values are finite.

    Against a tensor of zeros the error counts absolutely.
    """
    finite = np.isfinite(expected) if expected.shape == actual.shape else None
    if finite is None or not np.array_equal(finite, np.isfinite(actual)):
        return -math.inf
    wanted, got = expected[finite].astype(np.float64), actual[finite].astype(np.float64)
    power, noise = float(np.square(wanted).sum()), float(np.square(got - wanted).sum())
    if noise == 0:
        return 300.0
    return min(10 * math.log10((power or wanted.size) / noise), 300.0)


def _bisect_graph(
    bundle: Bundle, name: str, sides: tuple[Side, Side], threads: int | None, room: int, threshold: float | None
) -> Divergence:
    specs = [bundle.graph(name, side.precision) for side in sides]
    probes = [Probe(bundle, spec) for spec in specs]
    sizes, _ = read_vectors(bundle.path(vector_path(name)))
    needed = threshold
    if needed is None:
        needed = min(threshold_of(spec, side.backend, side.dtype) for spec, side in zip(specs, sides, strict=True))

    def measure(names: Sequence[str]) -> dict[str, float]:
        """dB of the graph's outputs and these tensors."""
        ours, reference = (
            _run(probe, names, spec, side, sizes, threads)
            for probe, spec, side in zip(probes, specs, sides, strict=True)
        )
        return {tensor: signal_to_error(reference[tensor], value) for tensor, value in ours.items()}

    worst = min(measure(()).values())
    if worst >= needed:
        return Divergence(name, round(worst, 2), needed)
    shared = {tensor.name for tensor in probes[1].tensors}
    both = [tensor for tensor in probes[0].tensors if tensor.name in shared and tensor.inputs != _TABULATED]
    known: dict[str, float] = {}
    for chunk in pieces(both, sizes, room):
        known |= measure([tensor.name for tensor in chunk])
        first = next((tensor for tensor in chunk if known[tensor.name] < needed), None)
        if first is not None:
            before = min((known.get(source, 300.0) for source in first.sources), default=300.0)
            return Divergence(
                name, round(worst, 2), needed, len(known), first.name, first.node, first.operator,
                round(known[first.name], 2), round(before, 2),
            )  # fmt: skip
    return Divergence(name, round(worst, 2), needed, len(known))


def _run(
    probe: Probe, names: Sequence[str], spec: GraphSpec, side: Side, sizes: Mapping[str, int], threads: int | None
) -> dict[str, np.ndarray]:
    """The graph's outputs and the tensors of these names, as float32."""
    with tempfile.TemporaryDirectory(prefix="vexpress-bisect-") as folder:
        bundle, exposed = probe.expose(names, Path(folder))
        kind = engine_class(side.backend)
        with _no_advice(), kind(bundle, exposed, backend=side.backend, threads=threads, dtype=side.dtype) as engine:
            outputs = engine.run(**vector_inputs(spec, sizes))
            return {name: np.array(value, np.float32) for name, value in outputs.items()}


@contextmanager
def _no_advice() -> Iterator[None]:
    """Engines' advice on speed is about another bundle, made for the moment."""
    log = logging.getLogger("vexpress")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
