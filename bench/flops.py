"""Floating-point operations of one call, counted from the ONNX graph: two for each multiply-add.

Convolutions, matrix products and attention are counted; what is left (norms, activations, sums) is a few per cent of
the real networks' arithmetic and bound by memory, so that a share of a ceiling is the share that the products reach.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.dims import DimensionError, evaluate
from vexpress_trt.engines.manifest import GraphSpec

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]


@dataclass(frozen=True)
class FlopCount:
    """Operations of one call, by kind. `linear` holds matrix products with weights or of activations; `attention` the
    two products of queries with keys and of scores with values."""

    convolution: int = 0
    linear: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        return self.convolution + self.linear + self.attention

    def __add__(self, other: "FlopCount") -> "FlopCount":
        return FlopCount(
            self.convolution + other.convolution, self.linear + other.linear, self.attention + other.attention
        )


def count_graph(bundle: Bundle, spec: GraphSpec, sizes: Mapping[str, int]) -> FlopCount:
    """Operations of one call of a bundle's graph when its symbols (B, F, h, w, ...) have these sizes.

    Raises UserError for an unreadable graph, ValueError where a size that counts cannot be known.
    """
    from vexpress_trt.engines.onnx_files import load_structure

    model = load_structure(bundle, spec)
    promised = {tensor.name: tensor.shape for tensor in (*spec.inputs, *spec.outputs)}
    for value in (*model.graph.input, *model.graph.output):
        for dimension, size in zip(value.type.tensor_type.shape.dim, promised[value.name], strict=True):
            _pin(dimension, size, sizes)
    return count_model(model, sizes)


def count_model(model: "onnx.ModelProto", sizes: Mapping[str, int] | None = None) -> FlopCount:
    """Operations of one call of an ONNX model; `sizes` are those of its symbolic dimensions.

    The exporter writes the shape of every intermediate tensor as an expression of the inputs' symbols; what a graph
    does not say is inferred. Raises ValueError, naming the node, where a shape that counts stays unknown.
    """
    shapes = _shapes(model, sizes or {})
    total = FlopCount()
    for node in model.graph.node:
        count = _COUNTERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if count is not None:
            total += count(_Node(node, shapes))
    return total


class _Node:
    """A node with the shapes of its tensors."""

    def __init__(self, node: "onnx.NodeProto", shapes: Mapping[str, Shape]):
        self._node = node
        self._shapes = shapes

    def input(self, index: int) -> Shape:
        return self._known(self._node.input[index])

    def output(self, index: int = 0) -> Shape:
        return self._known(self._node.output[index])

    def attribute(self, name: str, default: int) -> int:
        return next((item.i for item in self._node.attribute if item.name == name), default)

    def _known(self, name: str) -> Shape:
        if name not in self._shapes:
            where = self._node.name or self._node.output[0]
            raise ValueError(f"the shape of {name}, at the {self._node.op_type} node {where}, is not known")
        return self._shapes[name]


def _convolution(node: _Node) -> FlopCount:
    """Each output value sums over the kernel and the input channels of its group, as the weight's shape says."""
    return FlopCount(convolution=2 * prod(node.output()) * prod(node.input(1)[1:]))


def _transposed_convolution(node: _Node) -> FlopCount:
    """Each input value is spread over the kernel and the output channels of its group."""
    return FlopCount(convolution=2 * prod(node.input(0)) * prod(node.input(1)[1:]))


def _matrix_product(node: _Node) -> FlopCount:
    return FlopCount(linear=2 * prod(node.output()) * node.input(0)[-1])


def _gemm(node: _Node) -> FlopCount:
    inner = node.input(0)[0 if node.attribute("transA", 0) else 1]
    return FlopCount(linear=2 * prod(node.output()) * inner)


def _attention(node: _Node) -> FlopCount:
    """Queries [N, heads, T, D] or [N, T, heads*D], keys and values alike with S in place of T."""
    query, key, value = node.input(0), node.input(1), node.input(2)
    if len(query) == 4:
        batch, heads, queries, size = query
        width, value_width = heads * size, heads * value[3]
    else:
        batch, queries, width = query
        shared = node.attribute("q_num_heads", 1) // node.attribute("kv_num_heads", 1)
        value_width = value[2] * shared  # heads of keys and values may serve several heads of queries
    return FlopCount(attention=2 * batch * queries * key[-2] * (width + value_width))


_COUNTERS = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "MatMul": _matrix_product,
    "Gemm": _gemm,
    "Attention": _attention,
}


def _shapes(model: "onnx.ModelProto", sizes: Mapping[str, int]) -> dict[str, Shape]:
    """The shape of every tensor for which it can be known."""
    import onnx

    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            _pin(dimension, dimension.dim_value if dimension.HasField("dim_value") else dimension.dim_param, sizes)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dimension.HasField("dim_value") for dimension in tensor.shape.dim):
            shapes[value.name] = tuple(dimension.dim_value for dimension in tensor.shape.dim)
    return shapes


def _pin(dimension: "onnx.TensorShapeProto.Dimension", size: int | str, sizes: Mapping[str, int]) -> None:
    """Replace an expression by its value where its symbols' sizes are given."""
    try:
        value = evaluate(size, sizes) if size else None
    except DimensionError:  # a dimension that the exporter could not express
        return
    if value is not None:
        dimension.dim_value = value
