"""A bundle's graph with tensors inside it as further outputs, so that engines give what they compute on the way."""

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.dims import evaluate, is_dimension
from vexpress_trt.engines.manifest import DType, GraphSpec, TensorSpec
from vexpress_trt.engines.module_outputs import ModuleOutput, module_outputs
from vexpress_trt.engines.onnx_files import load_structure

if TYPE_CHECKING:
    import onnx

UNKNOWN = "unknown"  # a symbol without a size: the shape of an output that only the run tells
_UNKNOWN_BYTES = 4 << 20  # what a tensor of unknown size is taken for
_FLOATS: dict[int, DType] = {1: "float32", 10: "float16", 16: "bfloat16"}  # TensorProto.DataType


@dataclass(frozen=True)
class Inner:
    """A tensor that a node of a graph computes: floating point, `shape` symbolic, None where it is not recorded.

    `sources` are the tensors that the node reads, weights and inputs of the graph among them; `inputs` the inputs of
    the graph that it depends on.
    """

    name: str
    dtype: DType
    shape: tuple[int | str, ...] | None
    node: str
    operator: str
    sources: tuple[str, ...]
    inputs: frozenset[str]

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
        """The shape where symbols have these sizes; None where it does not follow from them."""
        dims = (None,) if self.shape is None else tuple(evaluate(dimension, sizes) for dimension in self.shape)
        return None if None in dims else dims


class Probe:
    """One graph of a bundle, opened up."""

    def __init__(self, bundle: Bundle, spec: GraphSpec) -> None:
        """Raises UserError where the graph cannot be read."""
        self._bundle, self._spec = bundle, spec
        self._model = load_structure(bundle, spec)

    @cached_property
    def tensors(self) -> tuple[Inner, ...]:
        """All floating-point tensors that nodes compute, the graph's outputs among them, in the order of the nodes."""
        values = self._values()
        inputs = {value.name: frozenset({value.name}) for value in self._model.graph.input}
        found = []
        for node in self._model.graph.node:
            reads = frozenset().union(*(inputs.get(source, frozenset()) for source in node.input))
            inputs |= dict.fromkeys(node.output, reads)
            for name in node.output:
                value = values.get(name)
                if value is not None and value.type.tensor_type.elem_type in _FLOATS:
                    dtype = _FLOATS[value.type.tensor_type.elem_type]
                    sources = tuple(source for source in node.input if source)
                    found.append(Inner(name, dtype, _shape(value), node.name, node.op_type, sources, reads))
        return tuple(found)

    @cached_property
    def module_outputs(self) -> dict[str, ModuleOutput]:
        """The tensors that a module of the network returns, by name."""
        return module_outputs(self._model)

    def opened(
        self, names: Sequence[str], sizes: Mapping[str, int] | None = None
    ) -> "tuple[onnx.ModelProto, GraphSpec]":
        """The graph with these tensors as outputs too, and its description. Weights lie where those of the bundle's do.

        With `sizes` of the symbols its inputs have fixed sizes.
        """
        import onnx

        own = {tensor.name for tensor in self._spec.outputs}
        further = [tensor for tensor in self.tensors if tensor.name in names and tensor.name not in own]
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        spec = self._spec if sizes is None else _fixed(model, self._spec, sizes)
        elements = {dtype: element for element, dtype in _FLOATS.items()}
        for tensor in further:
            value = model.graph.output.add(name=tensor.name)
            value.type.tensor_type.elem_type = elements[tensor.dtype]
        outputs = tuple(TensorSpec(tensor.name, tensor.dtype, (UNKNOWN,)) for tensor in further)
        return model, replace(spec, outputs=(*spec.outputs, *outputs))

    def expose(self, names: Sequence[str], folder: Path) -> tuple[Bundle, GraphSpec]:
        """What `opened` gives, written below an empty `folder`: a bundle that serves this graph only, and the graph's
        description. Weights are linked where the file system can."""
        model, spec = self.opened(names)
        for file in spec.files:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if file == spec.path:
                target.write_bytes(model.SerializeToString())
            else:
                _link(self._bundle.path(file), target)
        return replace(self._bundle, root=folder), spec

    def _values(self) -> "dict[str, onnx.ValueInfoProto]":
        """What is known of every tensor's type; inferred where the exporter did not record it."""
        import onnx

        computed = {name for node in self._model.graph.node for name in node.output}
        values = {value.name: value for value in (*self._model.graph.value_info, *self._model.graph.output)}
        if not computed <= values.keys():
            inferred = onnx.shape_inference.infer_shapes(self._model).graph
            values = {value.name: value for value in (*inferred.value_info, *inferred.output)} | values
        return values


def pieces(tensors: Sequence[Inner], sizes: Mapping[str, int], room: int) -> Iterator[list[Inner]]:
    """Neighbours that take up to `room` bytes together as FP32, at least one, where symbols have these `sizes`."""
    piece: list[Inner] = []
    used = 0
    for tensor in tensors:
        size = _bytes(tensor, sizes)
        if piece and used + size > room:
            yield piece
            piece, used = [], 0
        piece.append(tensor)
        used += size
    if piece:
        yield piece


def spread(tensors: Sequence[Inner], sizes: Mapping[str, int], room: int) -> list[Inner]:
    """As many as take up to `room` bytes together as FP32, at least one, at even distances."""
    count = len(tensors)
    while True:
        chosen = [tensors[(number + 1) * len(tensors) // (count + 1)] for number in range(count)]
        used = sum(_bytes(tensor, sizes) for tensor in chosen)
        if used <= room or count == 1:
            return chosen
        count = max(1, min(count - 1, count * room // used))


def _bytes(tensor: Inner, sizes: Mapping[str, int]) -> int:
    shape = tensor.sized(sizes)
    return _UNKNOWN_BYTES if shape is None else 4 * math.prod(shape)


def _fixed(model: "onnx.ModelProto", spec: GraphSpec, sizes: Mapping[str, int]) -> GraphSpec:
    """Give the inputs and outputs of a model their sizes; the description that goes with it."""

    def fixed(tensor: TensorSpec) -> TensorSpec:
        return replace(tensor, shape=tuple(evaluate(dimension, sizes) for dimension in tensor.shape))

    spec = replace(spec, inputs=tuple(map(fixed, spec.inputs)), outputs=tuple(map(fixed, spec.outputs)))
    shapes = {tensor.name: tensor.shape for tensor in (*spec.inputs, *spec.outputs)}
    for value in (*model.graph.input, *model.graph.output):
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            dim.dim_value = size
    return spec


def _shape(value: "onnx.ValueInfoProto") -> tuple[int | str, ...] | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in value.type.tensor_type.shape.dim]
    return tuple(dims) if all(map(is_dimension, dims)) else None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
