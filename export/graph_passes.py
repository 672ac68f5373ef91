"""Passes over an exported ONNX graph: smaller, and readable for people and parsers."""

import ast
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common as rules

_SCOPES = "pkg.torch.onnx.name_scopes"

# Those of onnxscript's rules that find something in these networks: trying them all takes as long as the tracing.
_RULES = [
    rules.add_0_rule,
    rules.div_by_1_rule,
    rules.mul_by_1_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.reshape_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
]


def tidy(model: ir.Model, *, symbols: Mapping[str, str]) -> None:
    """All passes, in place. `symbols` renames symbolic dimensions (`{"s48": "N"}`).

    Parameters keep their names, layouts and bytes: an engine may load them by name, and two graphs may share them.
    """
    parameters = set(model.graph.initializers)
    rename_symbols(model, symbols)
    _optimise(model, parameters)
    simplify_reshapes(model)
    separate_gates(model)
    _merge_constants(model, parameters)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.OutputFixPass()(model)
    name_nodes(model)
    drop_traces(model)


def rename_symbols(model: ir.Model, symbols: Mapping[str, str]) -> None:
    """Rename the symbols of all symbolic dimensions, within expressions too."""
    for value in _values(model.graph):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dimension, symbols) for dimension in value.shape])


def simplify_reshapes(model: ir.Model) -> None:
    """Give reshapes a constant target (0 = keep the axis, -1 = the rest) where one exists.

    The exporter computes targets from the shapes of other tensors; parsers then meet chains of integer operations
    whose result they must prove to be a shape.
    """
    graph = model.graph
    for node in graph:
        if node.op_type != "Reshape" or node.inputs[1].const_value is not None:
            continue
        target = _constant_target(node.inputs[0].shape, node.outputs[0].shape)
        if target is not None:
            name = "shape_" + "_".join(map(str, target)).replace("-", "m")
            if name not in graph.initializers:
                tensor = ir.tensor(np.array(target, np.int64), name=name)
                graph.register_initializer(ir.Value(name=name, shape=tensor.shape, const_value=tensor))
                graph.initializers[name].dtype = ir.DataType.INT64
            node.replace_input_with(1, graph.initializers[name])
            node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def separate_gates(model: ir.Model) -> None:
    """Compute the two halves of a gated projection (GEGLU) by two products with halves of its weight.

    Engines then take the activation and the product of the halves into the matrix products; cutting one product's
    result in two is a copy of the widest tensor there is. Weights stay whole in the file: engines fold their halving.
    """
    for node in list(model.graph):
        if node.op_type != "Split" or len(node.outputs) != 2 or node.inputs[0].shape is None:
            continue
        if node.attributes["axis"].as_int() not in (-1, len(node.inputs[0].shape) - 1):
            continue
        added = node.inputs[0].producer()
        product = added.inputs[0].producer() if added is not None and added.op_type == "Add" else None
        turned = product.inputs[1].producer() if product is not None and product.op_type == "MatMul" else None
        if turned is None or turned.op_type != "Transpose":
            continue
        weights, biases = (
            _node("Split", [whole], node, outputs=2, axis=0, num_outputs=2)
            for whole in (turned.inputs[0], added.inputs[1])
        )
        new = [weights, biases]
        for half, weight, bias in zip(node.outputs, weights.outputs, biases.outputs, strict=True):
            transposed = _node("Transpose", [weight], node, perm=[1, 0])
            multiplied = _node("MatMul", [product.inputs[0], transposed.outputs[0]], node)
            finished = _node("Add", [multiplied.outputs[0], bias], node)
            finished.outputs[0].shape, finished.outputs[0].type = half.shape, half.type
            ir.convenience.replace_all_uses_with(half, finished.outputs[0])
            new += [transposed, multiplied, finished]
        model.graph.insert_before(node, new)
        model.graph.remove(node, safe=True)


def name_nodes(model: ir.Model) -> None:
    """Name each node by the module that it comes from and its operator: `down_blocks.0.resnets.1.conv1/Conv`.

    Nodes of no module (sizes read off the inputs; torch has a private name for their origin) get the operator's name.
    """
    used: Counter[str] = Counter()
    for node in model.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        module = scopes[-2] if len(scopes) > 1 and not scopes[-2].startswith("_") else ""
        name = f"{module}/{node.op_type}" if module else node.op_type
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name]}"


def drop_traces(model: ir.Model) -> None:
    """Remove the exporter's notes: source lines of this machine, larger than the graph itself."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in _values(model.graph):
        value.metadata_props.clear()


def _node(kind: str, inputs: list[ir.Value], origin: ir.Node, outputs: int = 1, **attributes: Any) -> ir.Node:
    """A new node from the same module as `origin`."""
    node = ir.node(kind, inputs, attributes, num_outputs=outputs)
    node.metadata_props.update(origin.metadata_props)
    return node


def _optimise(model: ir.Model, parameters: Collection[str]) -> None:
    """What `onnxscript.optimizer` does, except that parameters are neither folded nor merged."""

    def should_fold(node: ir.Node) -> bool | None:
        return False if any(value is not None and value.name in parameters for value in node.inputs) else None

    common.InlinePass()(model)
    for _ in range(2):
        fold_constants_ir(model, onnx_shape_inference=True, should_fold=should_fold)
        rewrite(model, _RULES)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.NameFixPass()(model)


def _merge_constants(model: ir.Model, parameters: Collection[str]) -> None:
    """Let equal constants that are not parameters be one initializer."""
    first: dict[tuple, ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if name in parameters or tensor is None or tensor.nbytes > 256:
            continue
        kept = first.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if kept is not value:
            ir.convenience.replace_all_uses_with(value, kept)
            del model.graph.initializers[name]


def _constant_target(before: ir.Shape | None, after: ir.Shape | None) -> list[int] | None:
    if before is None or after is None:
        return None
    target = []
    for axis, dimension in enumerate(after):
        if isinstance(dimension, int):
            target.append(dimension)
        elif axis < len(before) and dimension.value is not None and dimension == before[axis]:
            target.append(0)
        else:
            target.append(-1)
    return target if target.count(-1) <= 1 else None


def _renamed(dimension: int | ir.SymbolicDim, symbols: Mapping[str, str]) -> int | ir.SymbolicDim:
    if isinstance(dimension, int) or dimension.value is None:
        return dimension
    return ir.SymbolicDim(re.sub(r"[A-Za-z_]\w*", lambda name: symbols.get(name[0], name[0]), dimension.value))


def _values(graph: ir.Graph) -> list[ir.Value]:
    outputs = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *outputs]
