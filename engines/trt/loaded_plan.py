"""A plan that was deserialised and can be enqueued: TensorRT's runtime side, in terms of names, sizes and addresses."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.trt.bindings import check_loaded
from vexpress_trt.engines.trt.builder import reason_of, shared_log, started
from vexpress_trt.engines.trt.flavour import TensorRt
from vexpress_trt.engines.trt.host_code import brings_host_code
from vexpress_trt.engines.trt.profile import Profile
from vexpress_trt.engines.trt.size_flags import smaller
from vexpress_trt.engines.trt.store import StoredEngine

MAX_CACHE_BYTES = 256 << 20
_CACHE = ".jit"
log = logging.getLogger("vexpress")


class LoadedPlan:
    """One engine and its execution context on the current GPU, without working memory of its own.

    TensorRT-RTX compiles kernels for the GPU when a context is made; what it compiled is kept in a file beside the plan
    and taken from there the next time. Everything here needs the GPU's context to be current.

    `weights` and `working`: bytes on the GPU, of the plan without weights that stay in the host's memory, and of the
    working memory at the largest sizes.
    """

    weights: int
    working: int

    def __init__(
        self,
        tensorrt: TensorRt,
        stored: StoredEngine,
        spec: GraphSpec,
        budget: int | None = None,
        remedy: str = "build it again with --force",
    ) -> None:
        """`budget`: bytes of GPU memory that the engine and its working memory may take (None: what it wants).

        `remedy`: what to do where the plan is of no use.

        Raises UserError where TensorRT refuses the plan, it is not what `spec` says, or it needs more than `budget`.
        """
        self._backend = f"{tensorrt.backend} {tensorrt.version}"
        self._stored, self._spec = stored, spec
        self._log = shared_log(tensorrt.module)
        self._log.lines.clear()
        self._cache: Any = None
        self._shapes: dict[str, tuple[int, ...]] = {}  # what the context was told
        self._scratch_size: int | None = None
        self._scratch: tuple[int, int] | None = None
        self._load(tensorrt, budget, remedy)

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """The size of an input. Raises UserError for one that the plan was not built for.

        The context is told of changes only: what was told before a run need not be again, and TensorRT would prepare
        anew, which it must not while a run is captured.
        """
        if self._shapes.get(name) == shape:
            return
        self._shapes.pop(name, None)
        self._scratch_size = self._scratch = None
        context = self._context
        if not context.set_input_shape(name, shape):
            raise UserError(
                f"{self._stored.plan} does not take {name} of shape {list(shape)} ({self._reason()}): build an engine "
                "for this size"
            )
        self._shapes[name] = shape

    def output_shape(self, name: str) -> tuple[int, ...]:
        """The size of an output when all inputs have theirs; -1 where it is not known."""
        context = self._context
        return tuple(context.get_tensor_shape(name))

    def scratch_size(self) -> int:
        """Bytes of working memory for inputs of the sizes that are set.

        Where TensorRT does not tell (0), or weights stream in, which needs memory that does not depend on sizes, those
        for the largest sizes.
        """
        if self._scratch_size is None:
            context = self._context
            told = int(context.update_device_memory_size_for_shapes())
            self._scratch_size = self.working if self._streams or told == 0 else told
        return self._scratch_size

    def use_scratch(self, address: int, size: int) -> None:
        """Work in this memory from the next run on."""
        if self._scratch != (address, size):
            context = self._context
            context.set_device_memory(address, size)
            self._scratch = address, size

    def bind(self, name: str, address: int) -> None:
        """Where an input or output lies."""
        context = self._context
        context.set_tensor_address(name, address)

    def enqueue(self, stream: int) -> None:
        """Enqueue a run on a stream. Raises UserError where TensorRT refuses."""
        context = self._context
        if not context.execute_async_v3(stream):
            raise UserError(f"{self._backend} could not run {self._spec.name} ({self._reason()})")

    def capturable(self, stream: int) -> bool:
        """Whether a run enqueued now can be part of a CUDA graph."""
        context = self._context
        return self._cache is None or bool(context.is_stream_capturable(stream))

    def close(self) -> None:
        """Free it, after storing what TensorRT-RTX compiled."""
        if self._cache is not None:
            self._store_cache()
        self._context = self._engine = self._runtime = self._cache = None

    def _load(self, tensorrt: TensorRt, budget: int | None, remedy: str) -> None:
        trt = tensorrt.module
        data, options = np.memmap(self._stored.plan, np.uint8, "r"), self._stored.sidecar.key.options
        runtime, engine = deserialised(tensorrt, data, options, self._log)
        if engine is None:
            raise UserError(f"{self._backend} cannot load {self._stored.plan} ({self._reason()}): {remedy}")
        check_loaded(trt, engine, self._spec, self._stored.plan, remedy)
        self.weights = limit_weights(engine, self._stored, budget)
        self._streams = self.weights < self._stored.plan.stat().st_size
        self.working = int(engine.device_memory_size_v2)
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if tensorrt.is_rtx:
            runtime_config = engine.create_runtime_config()
            runtime_config.set_execution_context_allocation_strategy(strategy)
            # Compiling for other sizes in the background would upset work that is being captured.
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            runtime_config.dynamic_shapes_kernel_specialization_strategy = eager
            runtime_cache = self._cache = runtime_config.create_runtime_cache()
            known = self._stored_cache()
            if known is not None and not runtime_cache.deserialize(known):
                log.info("%s is not of this GPU or version: compiling again", self._cache_path)
            runtime_config.set_runtime_cache(runtime_cache)
            context = engine.create_execution_context(runtime_config)
        else:
            context = engine.create_execution_context(strategy)
        if context is None:
            raise UserError(
                f"{self._backend} cannot prepare {self._spec.name} to run ({self._reason()}): free memory on the GPU"
            )
        self._runtime, self._engine, self._context = runtime, engine, context

    @property
    def _cache_path(self) -> Path:
        return self._stored.plan.with_suffix(_CACHE)

    def _stored_cache(self) -> bytes | None:
        try:
            path = self._cache_path
            return path.read_bytes() if 0 < path.stat().st_size <= MAX_CACHE_BYTES else None
        except OSError:
            return None

    def _store_cache(self) -> None:
        """A bundle that cannot be written only costs the compilation of every start."""
        runtime_cache = self._cache
        serialised = runtime_cache.serialize()
        data = b"" if serialised is None else bytes(memoryview(serialised))
        if data and data != self._stored_cache():
            try:
                with atomic_path(self._cache_path) as temporary:
                    temporary.write_bytes(data)
            except UserError as problem:
                log.info("what TensorRT-RTX compiled is not kept: %s", problem)

    def _reason(self) -> str:
        return reason_of(self._log)


def deserialised(tensorrt: TensorRt, data: Any, options: tuple[str, ...], log: Any) -> tuple[Any, Any]:
    """TensorRT's runtime and the engine of a plan's bytes, None where `log` says why not; `options` as in its key.

    Raises UserError where TensorRT does not start.
    """
    runtime = started(tensorrt, tensorrt.module.Runtime, log)
    if brings_host_code(options):
        runtime.engine_host_code_allowed = True
    return runtime, runtime.deserialize_cuda_engine(data)


def limit_weights(engine: Any, stored: StoredEngine, budget: int | None) -> int:
    """Let weights stream in from the host's memory as far as `budget` bytes ask for it; returns those on the GPU.

    Working memory counts as well, and streaming needs some more of it. Raises UserError where the engine needs more and
    its weights cannot stream, or even that does not make it fit.
    """
    size = stored.plan.stat().st_size
    resident = streamable = int(engine.streamable_weights_size)
    while budget is not None:
        needed = size - streamable + resident + int(engine.device_memory_size_v2)
        if needed <= budget:
            break
        if not resident:
            streaming = " with all weights streaming in" if streamable else ""
            symbols = Profile.parse(stored.sidecar.key.profile).ranges
            remedies = ["" if streamable else "build it with --weight_streaming --force", "use --save_gpu_memory"]
            remedies += [smaller(symbols), "or allow more"]
            raise UserError(
                f"{stored.plan.name} takes {needed / 2**20:.0f} MiB on the GPU{streaming}, "
                f"{max(0, budget) / 2**20:.0f} MiB of --gpu_memory are left for it: "
                f"{', '.join(filter(None, remedies))}"
            )
        resident = max(0, resident - (needed - budget))
        engine.weight_streaming_budget_v2 = resident
    return size - streamable + resident
