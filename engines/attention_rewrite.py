"""Rewrite ONNX `Attention` for onnxruntime's CPU provider, which would materialise the scores.

The provider's kernel of the standard operator holds queries x keys scores for every head (4.4 GB for [4, 8, 4096, 40]);
its `com.microsoft.MultiHeadAttention` works in tiles (0.16 GB) on the same numbers. The standard operator takes
[batch, heads, tokens, dim], the other one [batch, tokens, heads * dim], which is how the tensors look before the
exporter's transposes: these are skipped, not undone.
"""

from dataclasses import dataclass

import onnx
from onnx import helper

_DOMAIN = "com.microsoft"
_HEADS_FIRST = [0, 2, 1, 3]
_UNSUPPORTED_WHEN_SET = ("is_causal", "softcap", "qk_matmul_output_mode")


@dataclass(frozen=True)
class Rewritten:
    """How many `Attention` nodes were replaced, and the names of those that have no counterpart and stayed."""

    replaced: int
    kept: tuple[str, ...]


def rewrite_attention(model: onnx.ModelProto, *, compute_float32: bool = False) -> Rewritten:
    """Replace the `Attention` nodes of `model` in place; weights are not touched and need not be loaded.

    Nodes with a mask, a cache, causal or capped scores, grouped heads or an unknown number of heads stay as they are.
    `compute_float32` casts around the new node, for half-precision graphs on a kernel that has float32 only.
    """
    rewriter = _Rewriter(model, compute_float32)
    rewriter.run()
    return Rewritten(rewriter.replaced, tuple(rewriter.kept))


class _Rewriter:
    def __init__(self, model: onnx.ModelProto, compute_float32: bool):
        self.graph = model.graph
        self.model = model
        self.compute_float32 = compute_float32
        self.producer = {output: node for node in self.graph.node for output in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.results = {value.name for value in self.graph.output}
        self.replaced = 0
        self.kept: list[str] = []

    def run(self) -> None:
        if not any(node.op_type == "Attention" and node.domain == "" for node in self.graph.node):
            return
        self.shapes = _known_shapes(self.model)
        nodes: list[onnx.NodeProto] = []
        for node in self.graph.node:
            if node.op_type == "Attention" and node.domain == "":
                new = self._replacement(node)
                self.replaced += new is not None
                if new is None:
                    self.kept.append(node.name or node.output[0])
                nodes += new or [node]
            else:
                nodes.append(node)
        nodes = _without_dead(nodes, self.results)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        if self.replaced and all(opset.domain != _DOMAIN for opset in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))

    def _replacement(self, node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        optional = [*node.input[3:], *node.output[1:]]
        if any(optional) or any(attributes.get(name) for name in _UNSUPPORTED_WHEN_SET):
            return None
        query, key, value = node.input[:3]
        shape = self.shapes.get(query, ())
        if len(shape) != 4:
            return None
        heads, size = shape[1], shape[3]
        key_heads = self.shapes.get(key, (0, heads))[1]
        if not isinstance(heads, int) or not isinstance(size, int) or key_heads != heads:
            return None
        before: list[onnx.NodeProto] = []
        prefix = node.output[0]
        roles = {"query": query, "key": key, "value": value}
        # Key and value could stay heads-first, but then the kernel materialises the scores too.
        inputs = [self._tokens_first(name, f"{prefix}_{role}", before) for role, name in roles.items()]
        settings = {"num_heads": heads}
        if attributes.get("scale"):
            settings["scale"] = attributes["scale"]
        return before + self._attend(node, inputs, settings)

    def _attend(self, node: onnx.NodeProto, inputs: list[str], settings: dict) -> list[onnx.NodeProto]:
        """The new node with its casts, and what brings its output to the old node's form."""
        prefix = node.output[0]
        nodes = []
        output = merged = f"{prefix}_merged"
        if self.compute_float32:
            wide = [f"{name}_{prefix}_f32" for name in inputs]
            nodes += [
                helper.make_node("Cast", [old], [new], to=onnx.TensorProto.FLOAT)
                for old, new in zip(inputs, wide, strict=True)
            ]
            inputs, output = wide, f"{prefix}_merged_f32"
        nodes.append(
            helper.make_node("MultiHeadAttention", inputs, [output], name=f"{prefix}_mha", domain=_DOMAIN, **settings)
        )
        if self.compute_float32:
            nodes.append(helper.make_node("CastLike", [output, node.input[0]], [merged]))
        split = self._constant(f"{prefix}_split", [0, 0, settings["num_heads"], -1])
        consumers = self.consumers.get(prefix, [])
        if consumers and prefix not in self.results and all(map(_is_heads_transpose, consumers)):
            for consumer in consumers:
                nodes.append(helper.make_node("Reshape", [merged, split], [consumer.output[0]]))
                del consumer.input[:], consumer.output[:]
            return nodes
        nodes.append(helper.make_node("Reshape", [merged, split], [f"{prefix}_tokens_first"]))
        nodes.append(helper.make_node("Transpose", [f"{prefix}_tokens_first"], [prefix], perm=_HEADS_FIRST))
        return nodes

    def _tokens_first(self, name: str, prefix: str, nodes: list[onnx.NodeProto]) -> str:
        """The tensor as [batch, tokens, heads * dim], adding what is needed to `nodes`."""
        source = self._before_transpose(name)
        if source is None:
            source = f"{prefix}_tokens_first"
            nodes.append(helper.make_node("Transpose", [name], [source], perm=_HEADS_FIRST))
        _, heads, _, size = self.shapes.get(name, (None,) * 4)
        width = heads * size if isinstance(heads, int) and isinstance(size, int) else -1
        merge = self._constant(f"{prefix}_merge", [0, 0, width])
        nodes.append(helper.make_node("Reshape", [source, merge], [f"{prefix}_rows"]))
        return f"{prefix}_rows"

    def _before_transpose(self, name: str) -> str | None:
        node = self.producer.get(name)
        return node.input[0] if node is not None and _is_heads_transpose(node) else None

    def _constant(self, name: str, values: list[int]) -> str:
        self.graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT64, [len(values)], values))
        return name


def _is_heads_transpose(node: onnx.NodeProto) -> bool:
    return node.op_type == "Transpose" and any(
        item.name == "perm" and list(item.ints) == _HEADS_FIRST for item in node.attribute
    )


def _without_dead(nodes: list[onnx.NodeProto], results: set[str]) -> list[onnx.NodeProto]:
    """Drop emptied nodes and transposes whose result nobody reads any more."""
    used = {name for node in nodes for name in node.input} | results
    return [node for node in nodes if node.output and not (_is_heads_transpose(node) and used.isdisjoint(node.output))]


def _known_shapes(model: onnx.ModelProto) -> dict[str, tuple[int | str | None, ...]]:
    """Shapes of inputs and intermediate values; inferred where the exporter did not record them."""
    shapes = _recorded_shapes(model.graph)
    wanted = {name for node in model.graph.node if node.op_type == "Attention" for name in node.input[:3]}
    if not wanted <= shapes.keys():
        shapes |= _recorded_shapes(onnx.shape_inference.infer_shapes(model, data_prop=True).graph)
    return shapes


def _recorded_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int | str | None, ...]]:
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
            for dim in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
