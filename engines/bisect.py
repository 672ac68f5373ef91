"""The first tensor inside a graph on which two backends, precisions or types of arithmetic part: `verify --bisect`.

Where a graph's outputs differ by more than rounding, floating-point tensors inside it are looked at, as many at a time
as memory allows (see `narrowing`); both sides compute them from the same inputs. An engine cannot fuse across a tensor
that it must give, so what only fused kernels get wrong shows in the outputs and nowhere else.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.cpu import cpu
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.inside import Side, look_inside
from vexpress_trt.engines.intermediates import spread
from vexpress_trt.engines.narrowing import EQUAL_DB, Narrowing
from vexpress_trt.engines.selection import choose_backend, choose_precision
from vexpress_trt.engines.verify import THRESHOLDS_DB, read_vectors, threshold_of, vector_path

CHUNK_BYTES = 512 << 20  # of tensors that one look gives


@dataclass(frozen=True)
class Divergence:
    """What became of one graph. `snr_db`: the worst of its outputs; it agrees where that reaches `threshold_db`.

    `tensor`, `node` and `operator`: where the error begins, with `tensor_snr_db`; `before_db` is the worst of the
    compared tensors right before it (300: only weights and inputs, which are the same). All None where no tensor is
    below the threshold when it is asked for. `weights_alone`: whether that tensor depends on no input of the graph.
    `tensors`: how many inside the graph were compared, of `comparable` ones that both sides give, of the `total` that
    the graph computes of its inputs.
    """

    graph: str
    snr_db: float
    threshold_db: float
    tensors: int = 0
    comparable: int = 0
    total: int = 0
    tensor: str | None = None
    node: str | None = None
    operator: str | None = None
    tensor_snr_db: float | None = None
    before_db: float | None = None
    weights_alone: bool = False

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
    report: Callable[[str], None] = lambda line: None,
) -> list[Divergence]:
    """Compare graphs (None: all), and where they differ tensors inside them, as `one` and `other` compute them; `other`
    is the reference.

    `threshold` in dB tells rounding from divergence (None: by the coarser of the types). `report` is told of every look
    before it is taken, and where Ctrl-C ends the build of an engine. Raises UserError for two sides that are the same,
    for a `threshold` below 0 or above 300 and, before the first look, for a graph that is not in the bundle; and where
    an engine cannot be had.
    """
    if threshold is not None and not 0 <= threshold <= EQUAL_DB:
        rounding = ", ".join(f"{decibels:g} in {precision}" for precision, decibels in THRESHOLDS_DB.items())
        raise UserError(
            f"--threshold {threshold:g}: give dB from 0 to {EQUAL_DB:g}, which equal tensors have; rounding leaves "
            f"more than {rounding}"
        )
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    one, other = settled(bundle, one), settled(bundle, other)
    if one == other:
        raise UserError(
            f"--bisect {other.backend}: both sides are {one}; name another backend, or another type or precision with "
            "--bisect_dtype or --bisect_precision"
        )
    names = dict.fromkeys(graphs or (spec.name for spec in bundle.manifest.graphs))
    for name in names:
        for side in (one, other):
            bundle.graph(name, side.precision)
    with _no_advice():
        return [_bisect_graph(bundle, name, (one, other), threads, chunk_bytes, threshold, report) for name in names]


def settled(bundle: Bundle, side: Side) -> Side:
    """The side with what it leaves open chosen, but for a type that follows from the precision. Raises UserError for a
    backend that cannot run here."""
    backend, _ = choose_backend(side.backend, side.dtype or "auto")
    dtype = side.dtype or (cpu().fastest_dtype if backend == "openvino" else None)
    return Side(backend, side.precision or choose_precision(backend, bundle.precisions), dtype)


def format_divergences(results: Sequence[Divergence], one: Side, other: Side) -> str:
    """A line for each graph, and for each that diverges where it begins."""
    lines = [f"{one} against {other}"]
    for result in results:
        verdict = "agrees" if result.agrees else "DIVERGES"
        lines.append(f"{result.graph:<17} {result.snr_db:7.1f} dB of {result.threshold_db:.0f} needed: {verdict}")
        if not result.agrees and result.tensor is not None:
            lines.append(
                f"  first at {result.tensor}, of {result.node} ({result.operator}): "
                f"{result.tensor_snr_db:.1f} dB, {_before(result)}"
            )
        elif not result.agrees and not result.tensors:
            lines.append("  nothing that its wrong outputs depend on can be compared")
        elif not result.agrees:
            lines.append("  no tensor that was looked at does when it is asked for: look at fused kernels")
        if not result.agrees:
            lines.append(
                f"  looked at {result.tensors} tensors, of {result.comparable} that both sides give and {result.total} "
                "in the graph"
            )
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
        return EQUAL_DB
    return min(10 * math.log10((power or wanted.size) / noise), EQUAL_DB)


def _before(result: Divergence) -> str:
    if result.weights_alone:
        return "and depends on weights alone: compare those of both sides"
    return "before it no difference" if result.before_db == EQUAL_DB else f"before it {result.before_db:.1f} dB"


def _bisect_graph(
    bundle: Bundle,
    name: str,
    sides: tuple[Side, Side],
    threads: int | None,
    room: int,
    threshold: float | None,
    report: Callable[[str], None],
) -> Divergence:
    sizes, _ = read_vectors(bundle.path(vector_path(name)))
    insides = [look_inside(bundle, name, side, sizes, threads, report) for side in sides]
    needed = threshold
    if needed is None:
        needed = min(threshold_of(inside.spec, inside.side.backend, inside.side.dtype) for inside in insides)

    def look(names: Sequence[str]) -> dict[str, float]:
        """dB of the graph's outputs and of these tensors, as far as both sides give them."""
        report(f"{name}: {len(names)} of {len(shared)} tensors inside" if names else f"{name}: its outputs")
        ours, reference = (inside.run(names) for inside in insides)
        return {tensor: signal_to_error(reference[tensor], ours[tensor]) for tensor in ours.keys() & reference.keys()}

    shared = set.intersection(*({tensor.name for tensor in inside.tensors} for inside in insides))
    outputs = look(())
    worst, wrong = min(outputs.values()), {tensor: db for tensor, db in outputs.items() if db < needed}
    if not wrong:
        return Divergence(name, round(worst, 2), needed)
    shared |= wrong.keys()  # every output is given
    search = Narrowing(insides[0].all, shared, wrong, look, lambda tensors: spread(tensors, sizes, room))
    found = search.find(needed)
    counts = len(search.known), len(shared), len(insides[0].all)
    if found is None:
        return Divergence(name, round(worst, 2), needed, *counts)
    tensor = found.tensor
    return Divergence(
        name, round(worst, 2), needed, *counts, tensor.name, tensor.node, tensor.operator, round(found.decibels, 2),
        round(found.before_db, 2), not tensor.inputs,
    )  # fmt: skip


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
