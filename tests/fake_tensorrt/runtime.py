"""TensorRT's runtime side and a GPU's memory: a plan names a graph, or an ONNX file, which onnxruntime runs.

It refuses what the real one refuses: unknown names, sizes outside the profile, runs without memory or addresses.
"""

import ctypes
import json
from abc import ABC, abstractmethod
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.dims import evaluate, solve
from vexpress_trt.engines.engine import Engine, load_engine
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.engines.onnxruntime_engine import OnnxRuntimeEngine
from vexpress_trt.engines.trt.bindings import Binding
from vexpress_trt.engines.trt.flavour import TensorRt
from vexpress_trt.engines.trt.key import EngineKey
from vexpress_trt.engines.trt.profile import Profile, ProfileSettings
from vexpress_trt.engines.trt.store import EngineStore, graph_hash

NEEDED = 1 << 16  # bytes of working memory of every engine
STREAMING = 16  # bytes more where weights stream

ExecutionContextAllocationStrategy = Enum("ExecutionContextAllocationStrategy", ["STATIC", "USER_MANAGED"])
DynamicShapesKernelSpecializationStrategy = Enum("DynamicShapesKernelSpecializationStrategy", ["LAZY", "EAGER"])
TensorIOMode = Enum("TensorIOMode", ["INPUT", "OUTPUT"])
DataType = Enum("DataType", ["FLOAT", "HALF", "BF16", "INT64"])
TYPES = {"float32": DataType.FLOAT, "float16": DataType.HALF, "bfloat16": DataType.BF16, "int64": DataType.INT64}


class ILogger(ABC):
    INTERNAL_ERROR, ERROR, WARNING = range(3)

    @abstractmethod
    def log(self, severity: int, message: str) -> None:
        """Pure virtual in the real one, too."""


class Runtime:
    engine_host_code_allowed = False
    deserialised: list[str] = []

    def __init__(self, log: ILogger) -> None:
        self._log = log

    def deserialize_cuda_engine(self, plan: Any) -> "ICudaEngine | None":
        text = bytes(plan)
        if not text.startswith(b"{"):
            self._log.log(ILogger.ERROR, "Error Code 1: the plan's magic tag is wrong")
            return None
        about = json.loads(text)
        self.deserialised.append(about["graph"])
        return ICudaEngine(about, self._log)


class ICudaEngine:
    """Weights that stream need working memory of their own."""

    streamable_weights_size = 0
    weight_streaming_budget_v2 = 0

    def __init__(self, about: dict[str, Any], log: ILogger) -> None:
        self._log = log
        self._engine = (
            _built(about)
            if "onnx" in about
            else load_engine(
                Bundle.open(Path(about["bundle"])), about["graph"], backend="onnxruntime", precision="fp32", threads=1
            )
        )
        self._profile = Profile.parse(about["profile"])
        self.streamable_weights_size = self.weight_streaming_budget_v2 = about.get("streaming", 0)
        spec = self._engine.spec
        self._modes = {tensor.name: TensorIOMode.INPUT for tensor in spec.inputs}
        self._modes |= {tensor.name: TensorIOMode.OUTPUT for tensor in spec.outputs}
        self._tensors = {tensor.name: tensor for tensor in (*spec.inputs, *spec.outputs)}
        if about.get("renamed"):
            self._modes["other"] = self._modes.pop("image")
            self._tensors["other"] = self._tensors.pop("image")

    @property
    def device_memory_size_v2(self) -> int:
        streaming = self.weight_streaming_budget_v2 < self.streamable_weights_size
        return NEEDED + (STREAMING if streaming else 0)

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._modes[name]

    def get_tensor_dtype(self, name: str) -> DataType:
        return TYPES[self._tensors[name].dtype]

    def create_runtime_config(self) -> "IRuntimeConfig":
        return IRuntimeConfig()

    def create_execution_context(self, given: Any) -> "IExecutionContext":
        strategy = given._strategy if isinstance(given, IRuntimeConfig) else given
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        if isinstance(given, IRuntimeConfig):
            given._cache._content = b"compiled for this GPU"
        return IExecutionContext(self)


class IRuntimeCache:
    def __init__(self) -> None:
        self._content = b""

    def serialize(self) -> bytes:
        return self._content

    def deserialize(self, data: bytes) -> bool:
        self._content = data
        return data == b"compiled for this GPU"


class IRuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> None:
        self._cache = cache

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy


class IExecutionContext:
    runs: list[tuple[str, int, int]] = []  # (graph, stream, address of the working memory)

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine, self._shapes, self._addresses = engine, {}, {}
        self._memory: tuple[int, int] | None = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        ours = self._engine
        sizes = solve([(name, ours._tensors[name].shape, shape)])
        for symbol, size in sizes.items():
            limits = ours._profile.ranges[symbol]
            if not limits.smallest <= size <= limits.largest:
                ours._log.log(ILogger.ERROR, f"{symbol} = {size} is outside the profile")
                return False
        self._shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        ours = self._engine
        sizes = solve((each, ours._tensors[each].shape, shape) for each, shape in self._shapes.items())
        return tuple(evaluate(dimension, sizes) or -1 for dimension in ours._tensors[name].shape)

    def update_device_memory_size_for_shapes(self) -> int:
        assert self._shapes.keys() == {n for n, mode in self._engine._modes.items() if mode is TensorIOMode.INPUT}
        return NEEDED

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % 256 == 0
        self._memory = memory, size

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._engine._tensors

    def is_stream_capturable(self, stream: int) -> bool:
        return True

    def execute_async_v3(self, stream: int) -> bool:
        ours = self._engine
        missing = ours._tensors.keys() - self._addresses.keys()
        if missing or self._memory is None or self._memory[1] < NEEDED:
            ours._log.log(ILogger.ERROR, f"no address for {missing}" if missing else "no working memory")
            return False
        arrays, working = {name: self._array(name) for name in ours._tensors}, self._memory[0]
        inputs = tuple(self._shapes)

        def run() -> None:
            ctypes.memset(working, 0xFF, NEEDED)
            for name, result in ours._engine.run(**{name: arrays[name] for name in inputs}).items():
                arrays[name][...] = result

        IExecutionContext._put(stream, run)
        IExecutionContext.runs.append((ours._engine.spec.name, stream, working))
        return True

    @staticmethod
    def _put(stream: int, run: Callable[[], None]) -> None:
        """Enqueue a run, which takes sizes and addresses as they are now."""
        run()

    def _array(self, name: str) -> np.ndarray:
        tensor, shape = self._engine._tensors[name], self.get_tensor_shape(name)
        dtype = np.dtype(tensor.dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._addresses[name])).view(dtype).reshape(
            shape
        )  # fmt: skip


def _built(about: dict[str, Any]) -> Engine:
    """The graph that the builder wrote down, on onnxruntime."""
    inputs, outputs = (
        tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in about[side])
        for side in ("inputs", "outputs")
    )
    spec = GraphSpec(about["graph"], "fp32", "compiled.onnx", inputs, outputs, ("compiled.onnx",))
    with TemporaryDirectory() as folder:
        (Path(folder) / spec.path).write_bytes(b64decode(about["onnx"]))
        return OnnxRuntimeEngine(Bundle(Path(folder), None), spec, threads=1)


class HostDriver:
    """Stands in for `Driver`: addresses are of the host's memory, streams are numbers, work is done when enqueued."""

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.streams: set[int] = set()
        self._numbers = count(1000)

    @contextmanager
    def current(self) -> Iterator[None]:
        yield

    def mem_get_info(self) -> tuple[int, int]:
        return 8 << 30, 8 << 30

    def mem_alloc(self, size: int) -> int:
        raw = np.empty(size + 256, np.uint8)
        address = -(-raw.ctypes.data // 256) * 256
        self.memory[address] = raw
        return address

    def mem_free(self, address: int) -> None:
        del self.memory[address]

    def memcpy_htod(self, address: int, array: np.ndarray, stream: int) -> None:
        assert stream in self.streams
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def memcpy_dtoh(self, array: np.ndarray, address: int, stream: int) -> None:
        assert stream in self.streams
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def stream_create(self) -> int:
        self.streams.add(number := next(self._numbers))
        return number

    def stream_destroy(self, stream: int) -> None:
        self.streams.remove(stream)

    def stream_synchronize(self, stream: int) -> None:
        assert stream in self.streams

    def capture(self, stream: int, body: Callable[[], None]) -> Callable[[], None]:
        return body

    def milliseconds(self, stream: int, body: Callable[[], None]) -> float:
        body()
        return 1.0


def store_plan(
    bundle: Bundle,
    tensorrt: TensorRt,
    graph: str,
    *,
    target: str = "sm89",
    settings: ProfileSettings | None = None,
    options: tuple[str, ...] = (),
    version: str | None = None,
    content: bytes | None = None,
    **more: Any,
) -> Path:
    """Put a plan of an FP32 graph into a bundle, as `vexpress build` would have."""
    spec = bundle.graph(graph, "fp32")
    profile = (settings or ProfileSettings()).of(spec, bundle.manifest.model)
    key = EngineKey(
        tensorrt.backend, version or tensorrt.version, tensorrt.cuda_major, (target,), graph, "fp32", profile.name,
        options, graph_hash(bundle, graph, "fp32"),
    )  # fmt: skip
    about = {"bundle": str(bundle.root), "graph": graph, "profile": profile.name, **more}
    return EngineStore(bundle).put(key, content or json.dumps(about).encode(), {}, (Binding("x", True, "x", ()),))
