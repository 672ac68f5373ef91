"""Do a bundle's graphs compute, on this machine's backends, what the torch modules computed when it was exported?

A bundle holds small test vectors: the inputs are made from a counter-based generator, so only the outputs of the FP32
torch modules are stored, each thinned to a few thousand values.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np

from vexpress_trt.engines.backend_name import PLANNED, split_backend
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.cpu import cpu
from vexpress_trt.engines.dims import evaluate
from vexpress_trt.engines.dtypes import numpy_dtype
from vexpress_trt.engines.engine import Engine, load_engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.engines.selection import choose_backend, choose_precision

VECTOR_FOLDER = "parity"
MAX_VALUES = 4096  # stored per output
Vectors = tuple[dict[str, int], dict[str, np.ndarray]]  # the sizes of a graph's symbols, and its thinned outputs

# Signal to error, in dB, below which a graph is wrong rather than rounded. Rounding alone gives 100 and more (fp32), 55
# to 75 (fp16) and 30 to 45 (bf16) on these networks; a wrong weight or axis gives less than 20.
THRESHOLDS_DB = {"fp32": 80.0, "fp16": 40.0, "bf16": 25.0}

# FP32 matrix products on a GPU's tensor cores (TF32) have ten bits of mantissa, as FP16.
_TF32_DB = THRESHOLDS_DB["fp16"]
_CPU_BACKENDS = ("onnxruntime", "openvino", "torch")
_ABOUT_MOMENTARY = (
    "momentary: no stored plan takes the small test inputs, so one was built for them and thrown away. What was "
    "checked is TensorRT's arithmetic on the graph, not the stored plans, whose bytes `vexpress engines verify` checks"
)


@dataclass(frozen=True)
class ParityResult:
    """How far a graph on a backend is from its FP32 torch module: the worst of its outputs.

    An output with values that are not finite has `snr_db` -inf and `max_abs` inf. `plan`, of TensorRT: an engine of the
    bundle, or one that was built for the test inputs and thrown away.
    """

    graph: str
    precision: str
    backend: str
    output: str
    snr_db: float
    max_abs: float
    threshold_db: float
    plan: Literal["stored", "momentary"] | None = None

    @property
    def passed(self) -> bool:
        """Whether the difference can be rounding."""
        return self.snr_db >= self.threshold_db

    def as_dict(self) -> dict[str, Any]:
        """The fields and `passed`, for JSON, which has no infinity: None there."""
        fields = {**asdict(self), "passed": self.passed}
        return {name: None if value in (math.inf, -math.inf) else value for name, value in fields.items()}


def verify_bundle(
    bundle: Bundle | Path,
    backend: str = "auto",
    precision: str | None = None,
    *,
    dtype: str | None = None,
    threads: int | None = None,
    report: Callable[[ParityResult], None] = lambda result: None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[ParityResult]:
    """Run every graph on `backend` and compare with the stored outputs.

    `precision` None checks all precisions of the bundle that the backend runs; `dtype` and `threads` are those of
    `load_engine`. `report` is called with each result as it is known. One engine is loaded at a time. Where TensorRT
    has no engine in the bundle that takes the test inputs, it builds one for them and throws it away; `tell` is told
    before each of these builds, and when Ctrl-C ends one.

    Raises UserError when an engine cannot be loaded or built; before the first one where a graph has no test vectors,
    and before the first build where memory or disk are short for one of them.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    name, _ = choose_backend(backend)
    kind, _ = split_backend(name)
    runnable = [each for each in bundle.precisions if choose_precision(kind, [each]) == each]
    precisions = [precision] if precision else runnable or bundle.precisions[:1]
    graphs = dict.fromkeys(spec.name for spec in bundle.manifest.graphs)
    specs = [bundle.graph(graph, each) for each in precisions for graph in graphs]
    vectors = {graph: read_vectors(bundle.path(vector_path(graph))) for graph in graphs}
    unplanned = _unplanned(bundle, specs, name, dtype, vectors) if kind in PLANNED else []
    results = []
    for spec in specs:
        loading: AbstractContextManager[Engine]
        if spec in unplanned:
            number = f"{unplanned.index(spec) + 1}/{len(unplanned)}"
            tell(f"{number} {spec.name} in {spec.precision}: building a plan for the test inputs")
            loading, plan = _momentary(bundle, spec, name, vectors[spec.name][0], tell), "momentary"
        else:
            loading = load_engine(
                bundle, spec.name, backend=name, precision=spec.precision, dtype=dtype, threads=threads
            )
            plan = "stored" if kind in PLANNED else None
        with loading as engine:
            results.append(replace(_result(engine, vectors[spec.name], dtype), plan=plan))
        report(results[-1])
    return results


def verify_engine(bundle: Bundle, engine: Engine, *, dtype: str | None = None) -> ParityResult:
    """Compare one loaded engine with its graph's stored outputs; `dtype` is what it was told to compute in, if so."""
    return _result(engine, read_vectors(bundle.path(vector_path(engine.spec.name))), dtype)


def _result(engine: Engine, vectors: Vectors, dtype: str | None) -> ParityResult:
    spec, (sizes, expected) = engine.spec, vectors
    outputs = engine.run(**vector_inputs(spec, sizes))
    worst, snr, error = compare(expected, outputs)
    return ParityResult(
        spec.name, spec.precision, engine.backend, worst, snr, error, threshold_of(spec, engine.backend, dtype)
    )


def format_results(results: Sequence[ParityResult]) -> str:
    """A table for people, one line per graph, and a sentence."""
    lines = [f"{'graph':<17} {'precision':<9} {'backend':<12} {'SNR, dB':>7} {'needed':>6}  largest error"]
    for result in results:
        lines.append(
            f"{result.graph:<17} {result.precision:<9} {result.backend:<12} {result.snr_db:7.1f} "
            f"{result.threshold_db:6.0f}  {result.max_abs:.2g} ({result.output})"
            f"{f', {result.plan} plan' if result.plan else ''}{'' if result.passed else '  FAILED'}"
        )
    failed = sum(not result.passed for result in results)
    lines.append(f"{failed} of {len(results)} graphs differ" if failed else f"all {len(results)} graphs agree")
    if any(result.plan == "momentary" for result in results):
        lines.append(_ABOUT_MOMENTARY)
    return "\n".join(lines)


def compare(expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]) -> tuple[str, float, float]:
    """The output with the lowest ratio of signal to error: (name, that ratio in dB, largest absolute error).

    `expected` are thinned arrays (see `thin`), `actual` whole ones of any dtype.
    """
    differences = {name: difference(expected[name], thin(array)) for name, array in actual.items()}
    worst = min(differences, key=lambda name: differences[name][0])
    return worst, *differences[worst]


def difference(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """(signal to error in dB, at most 300; largest absolute error), or (-inf, inf).

    The latter for another shape and for values that are not finite.
    """
    if expected.shape != actual.shape or not np.isfinite(actual).all():
        return -math.inf, math.inf
    error = actual.astype(np.float64) - expected
    power, noise = float(np.square(expected, dtype=np.float64).sum()), float(np.square(error).sum())
    snr = 300.0 if noise == 0 else min(10 * math.log10(max(power, 1e-300) / noise), 300.0)
    return snr, float(np.abs(error).max(initial=0.0))


def vector_inputs(spec: GraphSpec, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Inputs for `spec` when its symbols have these `sizes`: the same values on every machine and in every precision.

    They are odd multiples of 1/128 between -2 and 2 (standard deviation 1.15), which every precision holds exactly;
    [0, 1) for pictures of key points, whole numbers for timesteps, and V-Express's usual values for the two weights.
    """
    arrays = {}
    for tensor in spec.inputs:
        shape = tuple(evaluate(dimension, sizes) for dimension in tensor.shape)
        arrays[tensor.name] = _values(spec, tensor, shape).astype(numpy_dtype(tensor.dtype))
    return arrays


def vector_path(graph: str) -> str:
    """Where in the bundle a graph's test vectors lie."""
    return f"{VECTOR_FOLDER}/{graph}.npz"


def write_vectors(path: Path, sizes: Mapping[str, int], outputs: Mapping[str, np.ndarray]) -> None:
    """Store the symbols' sizes and the thinned outputs of the FP32 torch module."""
    arrays = {f"output.{name}": thin(array) for name, array in outputs.items()}
    np.savez(path, sizes=np.array(json.dumps(dict(sizes))), **arrays)


def read_vectors(path: Path) -> Vectors:
    """The sizes and thinned outputs of `write_vectors`. Raises UserError when the file is missing or another kind."""
    try:
        with np.load(path, allow_pickle=False) as file:
            sizes = {str(name): int(size) for name, size in json.loads(str(file["sizes"])).items()}
            outputs = {name.removeprefix("output."): file[name] for name in file.files if name != "sizes"}
    except FileNotFoundError:
        raise UserError(f"{path} is missing, so there is nothing to compare with: export the bundle again") from None
    except (OSError, EOFError, ValueError, KeyError, AttributeError, BadZipFile) as problem:
        raise UserError(f"{path} holds no test vectors ({problem}): export the bundle again") from None
    return sizes, outputs


def thin(array: np.ndarray) -> np.ndarray:
    """At most MAX_VALUES values, evenly spaced over the flattened array, as float32.

    The spacing is odd, so that it does not fall on the same column of every row of an even width.
    """
    step = -(-array.size // MAX_VALUES)
    return np.asarray(array).reshape(-1)[:: step + (step > 1 and step % 2 == 0)].astype(np.float32)


def _unplanned(
    bundle: Bundle, specs: Sequence[GraphSpec], backend: str, dtype: str | None, vectors: Mapping[str, Vectors]
) -> list[GraphSpec]:
    """The graphs of which no engine of the bundle takes the test inputs. Raises UserError where one cannot be built."""
    from vexpress_trt.engines.trt.momentary import check_momentary, is_stored

    found = []
    for spec in specs:
        if not is_stored(bundle, spec, backend, vectors[spec.name][0]):
            check_momentary(bundle, spec, backend, dtype)
            found.append(spec)
    return found


def _momentary(
    bundle: Bundle, spec: GraphSpec, backend: str, sizes: Mapping[str, int], tell: Callable[[str], None]
) -> AbstractContextManager[Engine]:
    from vexpress_trt.engines.trt.momentary import momentary_engine

    return momentary_engine(bundle, spec, backend, sizes, tell)


def _values(spec: GraphSpec, tensor: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    if tensor.name == "reference_weight":
        return np.full(shape, 0.95)
    if tensor.name == "audio_weight":
        return np.full(shape, 3.0)
    # Bytes of Philox itself: what NumPy makes of them (normal deviates) may change between its versions.
    key = int.from_bytes(sha256(f"{spec.name}/{tensor.name}".encode()).digest()[:16], "little")
    count = math.prod(shape)
    raw = np.random.Philox(key=key).random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count].reshape(shape)
    if tensor.name == "timestep":
        return 3.0 * raw + 100  # 100 to 865, as diffusion timesteps are below 1000
    if tensor.name == "rgb":
        return raw / 256.0
    return (raw.astype(np.float64) - 127.5) / 64


def threshold_of(spec: GraphSpec, backend: str, dtype: str | None) -> float:
    """The dB that the coarser of the graph's type and the arithmetic reaches; `dtype` None is the backend's own."""
    if dtype is None and backend == "openvino":
        dtype = cpu().fastest_dtype
    threshold = min(THRESHOLDS_DB[each] for each in (spec.precision, dtype) if each in THRESHOLDS_DB)
    return threshold if backend in _CPU_BACKENDS else min(threshold, _TF32_DB)
