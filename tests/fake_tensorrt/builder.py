"""TensorRT's parser and builder: a plan is the ONNX graph with its weights, which onnxruntime runs."""

import json
from base64 import b64encode
from enum import Enum, IntEnum
from pathlib import Path

import onnx

from fake_tensorrt.runtime import TYPES, DataType, ILogger
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.dims import evaluate, solve
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.onnx_weights import initializer_arrays

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
    """Shapes of outputs are found anew whenever one is asked for, of the sizes that the inputs have by then; those of
    tensors inside when a graph is parsed."""

    def __init__(self) -> None:
        self._inputs: list[ITensor] = []
        self._layers: list[ILayer] = []

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._model.graph.output)

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_input(self, index: int) -> ITensor:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self._inferred()[self._model.graph.output[index].name]

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]

    def _fill(self, path: Path, model: onnx.ModelProto) -> None:
        self._path, self._model = path, model
        self._inputs = [ITensor(value) for value in model.graph.input]
        for tensor in self._inputs:
            tensor.is_network_input = True
        tensors = self._inferred()
        self._layers = [ILayer(node.op_type, tensors.get(node.output[0])) for node in model.graph.node]

    def _inferred(self) -> dict[str, ITensor]:
        bare = onnx.ModelProto()
        bare.CopyFrom(self._model)
        del bare.graph.value_info[:]
        known: dict[str, int] = {}
        for value, tensor in zip(bare.graph.input, self._inputs, strict=True):
            if min(tensor.shape, default=1) > 0:
                known |= solve([(value.name, _declared(value), tensor.shape)])
        for value in (*bare.graph.input, *bare.graph.output):
            for dim, declared in zip(value.type.tensor_type.shape.dim, _declared(value), strict=True):
                size = evaluate(declared, known)
                if size is not None:
                    dim.dim_value = size
        graph = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
        values = (*graph.value_info, *graph.output)
        return {value.name: ITensor(value) for value in values if value.type.tensor_type.elem_type in _ELEMENTS}

    def _take_in_weights(self) -> None:
        spec = GraphSpec(self._model.graph.name, "fp32", self._path.name, (), (), ())
        arrays = initializer_arrays(Bundle(self._path.parent, None), spec, self._model)
        for tensor in self._model.graph.initializer:
            tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))


def _declared(value: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


class OnnxParser:
    def __init__(self, network: INetworkDefinition, log: ILogger) -> None:
        self._network = network

    def parse(self, model: bytes, path: str) -> bool:
        self._network._fill(Path(path), onnx.load_model_from_string(model))
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
        network._take_in_weights()
        return json.dumps(
            {
                "graph": network._model.graph.name,
                "profile": "fixed",
                "onnx": b64encode(network._model.SerializeToString()).decode(),
                "inputs": [tensor._described() for tensor in network._inputs],
                "outputs": [network.get_output(index)._described() for index in range(network.num_outputs)],
            }
        ).encode()
