"""The engine interface: a graph with named bindings that can be run again and again."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.closing import Closing
from vexpress_trt.engines.dims import DimensionError, evaluate, solve
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec


class CancelledError(Exception):
    """A run that another thread put an end to."""


class Engine(Closing):
    """A loaded graph on one backend.

    Inputs are NumPy arrays of exactly the dtypes and ranks in `spec` (bfloat16 is `ml_dtypes.bfloat16`). They are used
    in place where the backend can: after changing an array that is bound, bind it again. Outputs stay valid, and keep
    their values, until the next `run` of the same engine or `close`; copy what must live longer.

    Close an engine, or use it as a context manager, to free its memory. An engine is used by one thread at a time;
    only `cancel` may be called from another.
    """

    backend: str
    keeps_within: ClassVar[bool] = False  # whether it takes `gpu_memory`, bytes of a GPU that it may have

    def __init__(self, spec: GraphSpec):
        self.spec = spec
        self._inputs = {tensor.name: tensor for tensor in spec.inputs}
        self._bound: dict[str, np.ndarray] = {}
        self._sizes: dict[str, int] | None = None
        self._closed = False
        self._cancelled = False

    def bind(self, **arrays: np.ndarray) -> None:
        """Keep these input arrays bound until they are bound again.

        Raises ValueError, naming the graph and tensor, for unknown names and for a wrong dtype or rank.
        """
        self._require_open()
        checked = {name: self._checked(name, array) for name, array in arrays.items()}
        for name, array in checked.items():
            before = self._bound.get(name)
            if before is None or before.shape != array.shape:
                self._sizes = None
            self._bound[name] = array
            self._bind(name, array)

    def run(self, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Bind these arrays, execute, and return the outputs by name.

        Raises ValueError when an input is not bound or when symbolic sizes contradict one another.
        """
        if self._cancelled:
            raise CancelledError(f"{self.spec.name} was cancelled")
        self.bind(**arrays)
        missing = [name for name in self._inputs if name not in self._bound]
        if missing:
            raise ValueError(f"{self.spec.name}: inputs not bound: {', '.join(missing)}")
        if self._sizes is None:
            self._sizes = self._solve()
        try:
            return self._execute(self._sizes)
        except Exception as problem:
            if self._cancelled:
                raise CancelledError(f"{self.spec.name} was cancelled") from problem
            raise

    def prepare(self, **sizes: int) -> None:
        """Do ahead what the first run with symbols of these sizes would have to do first, where the backend has such.

        Raises ValueError when an input's shape does not follow from them.
        """
        self._require_open()
        shapes = tuple(tuple(evaluate(d, sizes) for d in tensor.shape) for tensor in self.spec.inputs)
        if any(None in shape for shape in shapes):
            raise ValueError(f"{self.spec.name}: the sizes of {', '.join(sizes)} do not give the shapes of all inputs")
        self._prepare(shapes)

    def output_shape(self, tensor: TensorSpec, sizes: dict[str, int]) -> tuple[int, ...] | None:
        """The shape of an output when the symbols have these sizes; None if it depends on something else."""
        shape = [evaluate(dimension, sizes) for dimension in tensor.shape]
        return None if None in shape else tuple(shape)

    @property
    def gpu_bytes(self) -> tuple[int, int] | None:
        """What it has on a GPU, (weights, working memory), where the backend knows and it is loaded; else None."""
        return None

    def renew(self) -> None:
        """Go on as if just loaded: nothing is bound, and results do not depend on what was run before."""
        self._require_open()
        self._bound.clear()
        self._sizes = None
        self._renew()

    def cancel(self) -> None:
        """From another thread: end a `run` in progress as soon as the backend can, and refuse later ones.

        `run` then raises CancelledError. Afterwards `close` is of use, and `renew` where a backend breaks nothing off.
        """
        self._cancelled = True
        self._interrupt()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def close(self) -> None:
        """Free the engine's memory; it cannot be used afterwards. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._bound.clear()
            self._release()

    @abstractmethod
    def _bind(self, name: str, array: np.ndarray) -> None:
        """Take over a checked, C-contiguous array."""

    @abstractmethod
    def _execute(self, sizes: dict[str, int]) -> dict[str, np.ndarray]:
        """Run with what is bound; `sizes` are those of the symbolic dimensions."""

    @abstractmethod
    def _release(self) -> None:
        """Drop everything that holds memory."""

    def _prepare(self, shapes: tuple[tuple[int, ...], ...]) -> None:  # noqa: B027 - most backends have nothing to do
        """Get ready for inputs of these shapes."""

    def _renew(self) -> None:  # noqa: B027 - most backends remember nothing
        """Forget what earlier runs could change in later ones."""

    def _interrupt(self) -> None:  # noqa: B027 - most backends have no means
        """Make a run in progress on another thread end early, where the backend can."""

    def _require_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self.spec.name}: this engine is closed")

    def _checked(self, name: str, array: np.ndarray) -> np.ndarray:
        tensor = self._inputs.get(name)
        if tensor is None:
            raise ValueError(f"{self.spec.name}: no input {name!r}; inputs are {', '.join(self._inputs)}")
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{self.spec.name}: {name} is a {type(array).__name__}, not a NumPy array")
        if array.dtype.name != tensor.dtype:
            raise ValueError(f"{self.spec.name}: {name} has dtype {array.dtype.name}, expected {tensor.dtype}")
        if array.ndim != len(tensor.shape):
            expected = ", ".join(map(str, tensor.shape))
            raise ValueError(f"{self.spec.name}: {name} has shape {list(array.shape)}, expected [{expected}]")
        return np.ascontiguousarray(array)

    def _solve(self) -> dict[str, int]:
        shapes = ((name, tensor.shape, self._bound[name].shape) for name, tensor in self._inputs.items())
        try:
            return solve(shapes)
        except DimensionError as problem:
            raise ValueError(f"{self.spec.name}: {problem}") from None


def out_of_memory(problem: Exception, graph: str, allowed: int | None = None) -> UserError | None:
    """The sentence for a backend's failed allocation, which each of them words in its own way; else None.

    `allowed`: bytes of `gpu_memory` that it had to do with.
    """
    text = str(problem).lower()
    told = any(words in text for words in ("bad_alloc", "out of memory", "alloc_failed"))
    if isinstance(problem, MemoryError) or told or ("allocate" in text and "memory" in text):
        limit = "" if allowed is None else f", for which {allowed / 2**20:.0f} MiB of --gpu_memory were left"
        return UserError(
            f"there is not enough memory for {graph}{limit}: use --save_gpu_memory, fewer --context_frames or a "
            "smaller image"
        )
    return None


def load_engine(
    bundle: Bundle,
    graph: str,
    *,
    backend: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    dtype: str | None = None,
    gpu_memory: int | None = None,
) -> Engine:
    """Load a graph of a bundle on a backend.

    `backend` is a name from `vexpress doctor` or "auto". `precision` picks the graph ("fp32", "fp16", "bf16"; None: the
    one that suits the backend), `dtype` what the backend computes in where it can choose (openvino and torch; None: its
    default), `threads` the CPU threads (None: the cores this process may use). `gpu_memory`: bytes of a GPU's memory
    that a TensorRT or onnxruntime engine may take there; torch has one limit for the process (`limit_memory`).

    Raises UserError when the backend is unknown, cannot run or be imported here, the bundle lacks the graph or
    precision, or `gpu_memory` is known to be too little.
    """
    from vexpress_trt.engines.selection import choose_backend, choose_precision, engine_class

    name, _ = choose_backend(backend)
    spec = bundle.graph(graph, precision or choose_precision(name, bundle.precisions))
    kind = engine_class(name)
    limit = {} if gpu_memory is None or not kind.keeps_within else {"gpu_memory": gpu_memory}
    try:
        return kind(bundle, spec, backend=name, threads=threads, dtype=dtype, **limit)
    except ImportError as problem:  # it is installed, as was looked up, but a library under it is not
        raise UserError(
            f"the backend {name} cannot be imported here ({problem}): install it anew, or choose another --backend"
        ) from None
