"""TensorRT's parser and builder: a plan is the ONNX file itself, which the runtime side has onnxruntime run."""

import json
from enum import Enum, IntEnum
from pathlib import Path

import onnx

from fake_tensorrt.runtime import TYPES, DataType, ILogger

_ELEMENTS = {
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.INT64: DataType.INT64,
}
LayerType = Enum("LayerType", ["ATTENTION_INPUT", "CONVOLUTION", "ELEMENTWISE"])
MemoryPoolType = Enum("MemoryPoolType", ["WORKSPACE"])
ComputeCapability = Enum("ComputeCapability", ["SM89"])
NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", ["STRONGLY_TYPED"], start=0)


class ITensor:
    name: str
    dtype: DataType
    shape: tuple[int, ...]
    is_network_input = False

    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self.name, self.dtype = value.name, _ELEMENTS[value.type.tensor_type.elem_type]
        self.shape = tuple(dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim)

    def _described(self) -> tuple[str, str, tuple[int, ...]]:
        return self.name, next(name for name, dtype in TYPES.items() if dtype is self.dtype), self.shape


class ILayer:
    type: LayerType

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
