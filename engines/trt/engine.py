"""TensorRT and TensorRT-RTX as engines: plans of the bundle, run on host arrays or on a device's own buffers."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from vexpress_trt.engines.backend_name import split_backend
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.device_engine import DeviceEngine
from vexpress_trt.engines.dims import DimensionError, solve
from vexpress_trt.engines.driver import driver
from vexpress_trt.engines.dtypes import numpy_dtype
from vexpress_trt.engines.engine import Engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.trt.fitting import Here, fitting_plans, rebuild_command
from vexpress_trt.engines.trt.loaded_plan import LoadedPlan
from vexpress_trt.engines.trt.scratch import scratch
from vexpress_trt.engines.trt.store import EngineStore, StoredEngine

log = logging.getLogger("vexpress")


class TensorRtEngine(Engine, DeviceEngine):
    """The engines that were built for a graph, of which one at a time is loaded: the one for the sizes at hand.

    Working memory is shared with engines that cannot run at the same time (see `scratch`).
    """

    keeps_within = True

    def __init__(
        self,
        bundle: Bundle,
        spec: GraphSpec,
        *,
        backend: str,
        threads: int | None = None,
        dtype: str | None = None,
        gpu_memory: int | None = None,
    ) -> None:
        """`backend` "tensorrt" or "tensorrt-rtx", with ":1" for the second GPU; `threads` do not matter.

        `gpu_memory`: bytes of the GPU that weights and working memory may take (None: what they want); weights of an
        engine that was built for it stream in from the host's memory then. Raises UserError where no engine fits, the
        one that does is damaged or is refused or needs more memory, and for a `dtype` other than the graph's.
        """
        super().__init__(spec)
        self.backend = backend
        check_dtype(backend, spec, dtype)
        kind, number = split_backend(backend)
        gpu = number or 0
        self._bundle, self._here = bundle, Here.of(kind, gpu)
        self._plans = fitting_plans(bundle, self._here, spec)
        self._budget = gpu_memory
        self._driver, self._scratch = driver(gpu), scratch(gpu)
        self._loaded: tuple[StoredEngine, LoadedPlan] | None = None
        self._own: dict[str, tuple[int, int]] = {}  # {tensor: (address, bytes)} of memory of this engine
        self._results: dict[str, np.ndarray] = {}
        self._given: dict[str, tuple[int, tuple[int, ...]]] = {}  # {tensor: (address, shape)} to run with
        with self._driver.current():
            self._stream = self._driver.stream_create()
            try:
                if len(self._plans) == 1:
                    self._load(self._plans[0][0])
            except BaseException:
                self._driver.stream_destroy(self._stream)
                raise

    @property
    def gpu_bytes(self) -> tuple[int, int] | None:
        return None if self._loaded is None else (self._loaded[1].weights, self._loaded[1].working)

    def bind_buffers(self, **buffers: Any) -> None:
        tensors = {tensor.name: tensor for tensor in (*self.spec.inputs, *self.spec.outputs)}
        for name, buffer in buffers.items():
            if name not in tensors:
                raise ValueError(f"{self.spec.name}: there is no input or output {name!r}")
            if np.dtype(buffer.dtype).name != tensors[name].dtype:
                raise ValueError(f"{self.spec.name}: {name} is {buffer.dtype}, expected {tensors[name].dtype}")
            self._given[name] = (_address(buffer), tuple(buffer.shape))

    def enqueue(self, stream: int) -> None:
        with self._driver.current():
            plan = self._ready()
            size = plan.scratch_size()
            plan.use_scratch(self._scratch.of_stream(stream, size, self), size)
            plan.enqueue(stream)

    def capture(self, stream: int, body: Callable[[], None]) -> Callable[[], None]:
        with self._driver.current():
            if self._ready().capturable(stream):
                return self._driver.capture(stream, body)
        log.warning("%s cannot capture %s in a CUDA graph: calls are enqueued anew", self.backend, self.spec.name)
        return body

    def _bind(self, name: str, array: np.ndarray) -> None:
        with self._driver.current():
            address = self._memory(name, array.nbytes)
            self._driver.memcpy_htod(address, array, self._stream)
            self._driver.stream_synchronize(self._stream)  # other streams do not wait for this one
        self._given[name] = (address, array.shape)

    def _prepare(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        sizes = self._sizes_of(dict(zip(self._inputs, shapes, strict=True)))
        with self._driver.current():
            self._plan_for(sizes)

    def _execute(self, sizes: dict[str, int]) -> dict[str, np.ndarray]:
        with self._driver.current():
            for tensor in self.spec.outputs:
                self._given.pop(tensor.name, None)
            plan = self._ready()
            for tensor in self.spec.outputs:
                shape = plan.output_shape(tensor.name)
                array = self._results.get(tensor.name)
                if array is None or array.shape != shape:
                    array = self._results[tensor.name] = np.empty(shape, numpy_dtype(tensor.dtype))
                plan.bind(tensor.name, self._memory(tensor.name, array.nbytes))
            size = plan.scratch_size()
            with self._scratch.lent(size) as address:
                plan.use_scratch(address, size)
                plan.enqueue(self._stream)
                for name, array in self._results.items():
                    self._driver.memcpy_dtoh(array, self._own[name][0], self._stream)
                self._driver.stream_synchronize(self._stream)
        return dict(self._results)

    def _renew(self) -> None:
        """Buffers that were bound, and the streams of `enqueue`, may be gone; of a cancelled run nothing is left."""
        self._cancelled = False
        self._given.clear()
        with self._driver.current():
            self._scratch.release(self)

    def _release(self) -> None:
        with self._driver.current():
            self._driver.stream_synchronize(self._stream)
            self._unload()
            self._scratch.release(self)
            for address, _ in self._own.values():
                self._driver.mem_free(address)
            self._driver.stream_destroy(self._stream)
        self._own.clear()
        self._given.clear()
        self._results.clear()

    def _memory(self, name: str, size: int) -> int:
        """This engine's own memory for a tensor."""
        address, held = self._own.get(name, (0, -1))
        if held != size:
            if held >= 0:
                self._driver.mem_free(address)
                del self._own[name]
            address = self._driver.mem_alloc(size)
            self._own[name] = (address, size)
        return address

    def _ready(self) -> LoadedPlan:
        """The plan for what is given, with the sizes and addresses of all that is given."""
        missing = [name for name in self._inputs if name not in self._given]
        if missing:
            raise ValueError(f"{self.spec.name}: inputs not bound: {', '.join(missing)}")
        sizes = self._sizes_of({name: self._given[name][1] for name in self._inputs})
        plan = self._plan_for(sizes)
        for name in self._inputs:
            plan.set_shape(name, self._given[name][1])
        for tensor in self.spec.outputs:
            shape = plan.output_shape(tensor.name)
            promised = self.output_shape(tensor, sizes)
            if -1 in shape or (promised is not None and shape != promised):
                raise UserError(
                    f"{self._loaded[0].plan} gives {tensor.name} of shape {list(shape)}, the manifest says "
                    f"{list(promised or ())}: {rebuild_command(self._bundle, self._here, self._loaded[0])}"
                )
            bound = self._given.get(tensor.name)
            if bound is not None and bound[1] != shape:
                raise ValueError(f"{self.spec.name}: {tensor.name} has shape {list(shape)}, not {list(bound[1])}")
        for name, (address, _) in self._given.items():
            plan.bind(name, address)
        return plan

    def _sizes_of(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
        try:
            return solve((tensor.name, tensor.shape, shapes[tensor.name]) for tensor in self.spec.inputs)
        except DimensionError as problem:
            raise ValueError(f"{self.spec.name}: {problem}") from None

    def _plan_for(self, sizes: dict[str, int]) -> LoadedPlan:
        """Load the engine for these sizes, in place of another one; it may have been built since this was made.

        Raises UserError where none was built for them.
        """
        fitting = [stored for stored, profile in self._plans if profile.takes(sizes)]
        if self._loaded is not None and self._loaded[0] in fitting:
            return self._loaded[1]
        if not fitting:
            since = fitting_plans(self._bundle, self._here, self.spec, sizes)
            self._plans += since
            fitting = [stored for stored, _ in since]
        self._unload()
        return self._load(fitting[0])

    def _load(self, stored: StoredEngine) -> LoadedPlan:
        damage, remedy = EngineStore(self._bundle).damage(stored), rebuild_command(self._bundle, self._here, stored)
        if damage:
            raise UserError(f"{stored.plan}: {damage}; {remedy}")
        plan = LoadedPlan(self._here.tensorrt, stored, self.spec, self._budget, remedy)
        self._loaded = stored, plan
        return plan

    def _unload(self) -> None:
        if self._loaded is not None:
            self._loaded[1].close()
            self._loaded = None


def check_dtype(backend: str, spec: GraphSpec, dtype: str | None) -> None:
    """Raises UserError for a type of arithmetic other than the graph's."""
    if dtype not in (None, spec.precision):
        raise UserError(
            f"{backend} computes in the graph's own precision, {spec.precision}, not in {dtype}: leave out the type"
        )


def _address(buffer: Any) -> int:
    """Where a buffer lies: an array of the host, where the device is the host, or memory of a GPU."""
    if isinstance(buffer, np.ndarray):
        return buffer.ctypes.data
    return int(buffer.__cuda_array_interface__["data"][0])
