"""A graph as the ONNX parsers of TensorRT 10.12 and 10.13 read it: without the operator `Attention` and its opset.

Attention becomes two products with a softmax between them, in the form that these versions look for to make one kernel
of it ("Fused Attention" in their documentation): queries scaled before the first product, everything in one type.
Whether they do is up to the builder; the numbers are the same.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper

from vexpress_trt.engines.errors import UserError

OPSET = 22  # the last one before `Attention`
_PLAIN = {"scale", "is_causal", "softcap", "qk_matmul_output_mode"}  # the latter three only where they are off
_KEYS_LAST = [0, 1, 3, 2]


def for_older_parsers(model: onnx.ModelProto, path: Path) -> None:
    """Rewrite the model of the file at `path` in place; external weights stay where they are.

    Raises UserError where an attention has a mask, a cache or another setting that no graph of ours has, and where an
    operator does not exist in the older opset or means something else there.
    """
    try:
        rewrite(model)
    except ValueError as problem:
        raise UserError(
            f"{path}: {problem}, which is not rewritten for TensorRT before 10.14: install a newer version, or run the "
            "bundle with `--backend onnxruntime` or `torch`"
        ) from None


def rewrite(model: onnx.ModelProto) -> None:
    """Do so in place. Raises ValueError that names a node and what of it."""
    values = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.value_info)}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Attention" and node.domain == "":
            nodes += _products(model.graph, node, values)
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    _lower(model)


def _products(
    graph: onnx.GraphProto, node: onnx.NodeProto, values: dict[str, onnx.TypeProto.Tensor]
) -> list[onnx.NodeProto]:
    """softmax(scale q k^T) v of an attention over [batch, heads, tokens, channels of a head]."""
    settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    query, key, value = node.input[:3]
    sizes = [_sizes(values.get(name)) for name in (query, key, value)]
    unusual = sorted(name for name, setting in settings.items() if setting and name != "scale" or name not in _PLAIN)
    if unusual or any(node.input[3:]) or any(node.output[1:]):
        raise ValueError(f"the attention {node.name} has {', '.join(unusual) or 'more inputs or outputs than usual'}")
    if any(len(size) != 4 or size[1] != sizes[0][1] for size in sizes) or not isinstance(sizes[0][3], int):
        raise ValueError(f"the attention {node.name} has heads of unknown or different sizes")
    prefix, name = node.output[0], node.name or node.output[0]
    scale = settings.get("scale") or 1 / math.sqrt(sizes[0][3])
    graph.initializer.append(_scalar(f"{prefix}/scale", scale, values[query].elem_type))
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Mul", [query, f"{prefix}/scale"], f"{prefix}/scaled", {}),
        ("Transpose", [key], f"{prefix}/keys", {"perm": _KEYS_LAST}),
        ("MatMul", [f"{prefix}/scaled", f"{prefix}/keys"], f"{prefix}/scores", {}),
        ("Softmax", [f"{prefix}/scores"], f"{prefix}/shares", {"axis": -1}),
        ("MatMul", [f"{prefix}/shares", value], node.output[0], {}),
    ]
    return [
        helper.make_node(kind, inputs, [output], name=f"{name}/{kind}_{number}", **attributes)
        for number, (kind, inputs, output, attributes) in enumerate(steps)
    ]


def _sizes(known: onnx.TypeProto.Tensor | None) -> tuple[int | str, ...]:
    """The sizes of a tensor, () where the graph does not tell."""
    if known is None:
        return ()
    return tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in known.shape.dim)


def _scalar(name: str, value: float, element: int) -> onnx.TensorProto:
    array = np.array(value, helper.tensor_dtype_to_np_dtype(element))
    return helper.make_tensor(name, element, [], array.tobytes(), raw=True)


def _lower(model: onnx.ModelProto) -> None:
    """Declare the older opset, where every operator is the same in both. Raises ValueError for one that is not."""
    for opset in model.opset_import:
        if opset.domain not in ("", "ai.onnx") or opset.version <= OPSET:
            continue
        for node in model.graph.node:
            if node.domain in ("", "ai.onnx") and not _means_the_same(node.op_type, opset.version):
                raise ValueError(f"the operator {node.op_type} of {node.name} is of opset {opset.version}")
        opset.version = OPSET


def _means_the_same(operator: str, version: int) -> bool:
    """Whether the older opset defines an operator of this one in the same words; it may take fewer types there."""
    try:
        newer, older = (defs.get_schema(operator, number, "") for number in (version, OPSET))
    except defs.SchemaError:
        return False
    return _definition(newer) == _definition(older)


def _definition(schema: defs.OpSchema) -> tuple[Any, ...]:
    attributes = {name: (item.type, item.required, item.default_value) for name, item in schema.attributes.items()}
    values = [[(value.name, value.option) for value in side] for side in (schema.inputs, schema.outputs)]
    return schema.doc, attributes, values
