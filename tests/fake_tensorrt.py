"""TensorRT's builder and runtime and a GPU's memory, played on the CPU: a plan names a graph, which onnxruntime runs.

It refuses what the real one refuses: unknown names, sizes outside the profile, runs without memory or addresses. Its
names are held to the real bindings by `test_conformance`.
"""

import ctypes
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, IntEnum
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx

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
_TYPES = {"float32": DataType.FLOAT, "float16": DataType.HALF, "bfloat16": DataType.BF16, "int64": DataType.INT64}


_ELEMENTS = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.INT64: DataType.INT64,
}
LayerType = Enum("LayerType", ["ATTENTION_INPUT", "CONVOLUTION", "ELEMENTWISE"])
MemoryPoolType = Enum("MemoryPoolType", ["WORKSPACE"])
ComputeCapability = Enum("ComputeCapability", ["SM89"])
NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", ["STRONGLY_TYPED"], start=0)


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
        return _TYPES[self._tensors[name].dtype]

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


class ITensor:
    is_network_input = False

    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name, self.dtype = value.name, _ELEMENTS[value.type.tensor_type.elem_type]
        self.shape = tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)

    def _described(self) -> tuple[str, str, tuple[int, ...]]:
        return self.name, next(name for name, dtype in _TYPES.items() if dtype is self.dtype), self.shape


class ILayer:
    def __init__(self, operator: str, output: ITensor | None) -> None:
        self.type = LayerType.CONVOLUTION if operator == "Conv" else LayerType.ELEMENTWISE
        self._output = output

    def get_output(self, index: int) -> ITensor | None:
        return self._output


class INetworkDefinition:
    """Shapes are inferred when a graph is parsed, so inputs of sizes that are pinned later have them from the start."""

    def __init__(self) -> None:
        self._inputs: list[ITensor] = []
        self._outputs: list[ITensor] = []
        self._layers: list[ILayer] = []

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]

    def _fill(self, path: Path, model: onnx.ModelProto) -> None:
        self._path, self._model = path, model
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        del bare.graph.value_info[:]
        graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
        tensors = {
            value.name: ITensor(value)
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.elem_type in _ELEMENTS
        }
        self._inputs = [tensors[value.name] for value in graph.input]
        self._outputs = [tensors[value.name] for value in graph.output]
        self._layers = [ILayer(node.op_type, tensors.get(node.output[0])) for node in graph.node]
        for tensor in self._inputs:
            tensor.is_network_input = True


class OnnxParser:
    def __init__(self, network: INetworkDefinition, log: ILogger) -> None:
        self._network = network

    def parse_from_file(self, path: str) -> bool:
        self._network._fill(Path(path), onnx.load(path, load_external_data=False))
        return True


class IOptimizationProfile:
    def set_shape(self, name: str, smallest: tuple[int, ...], best: tuple[int, ...], largest: tuple[int, ...]) -> None:
        assert smallest == best == largest  # of an input whose sizes are all fixed


class ITimingCache:
    def serialize(self) -> bytes:
        return b"timings"

    def combine(self, other: "ITimingCache", ignore_mismatch: bool) -> bool:
        return True


class IBuilderConfig:
    num_compute_capabilities = 0
    progress_monitor = None

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        assert pool is MemoryPoolType.WORKSPACE and size > 0

    def set_compute_capability(self, capability: ComputeCapability, index: int) -> bool:
        return index < self.num_compute_capabilities

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        return 0

    def create_timing_cache(self, known: bytes) -> ITimingCache:
        return ITimingCache()

    def set_timing_cache(self, timings: ITimingCache, ignore_mismatch: bool) -> bool:
        return True

    def get_timing_cache(self) -> ITimingCache:
        return ITimingCache()


class IProgressMonitor:
    pass


class Builder:
    """`miscompiled` are operators in whose place another one is computed; with `only_fused`, in those plans alone that
    have no outputs but the graph's first one. `built` counts the outputs of every plan."""

    miscompiled: dict[str, str] = {}
    only_fused = False
    built: list[int] = []

    def __init__(self, log: ILogger) -> None:
        pass

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes:
        self.built.append(network.num_outputs)
        if not self.only_fused or network.num_outputs == 1:
            for node in network._model.graph.node:
                node.op_type = self.miscompiled.get(node.op_type, node.op_type)
        compiled = network._path.with_suffix(".compiled.onnx")
        compiled.write_bytes(network._model.SerializeToString())
        return json.dumps(
            {
                "graph": network._model.graph.name,
                "profile": "fixed",
                "onnx": str(compiled),
                "inputs": [tensor._described() for tensor in network._inputs],
                "outputs": [tensor._described() for tensor in network._outputs],
            }
        ).encode()


def _built(about: dict[str, Any]) -> Engine:
    """The graph that the builder wrote down, on onnxruntime."""
    path = Path(about["onnx"])
    inputs, outputs = (
        tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in about[side])
        for side in ("inputs", "outputs")
    )
    files = tuple(file.name for file in path.parent.iterdir() if file.is_file())
    spec = GraphSpec(about["graph"], "fp32", path.name, inputs, outputs, files)
    return OnnxRuntimeEngine(Bundle(path.parent, None), spec, threads=1)


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
