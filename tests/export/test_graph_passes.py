"""Exported graphs are tidied without touching their parameters."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from vexpress_trt.export.graph_passes import name_nodes, rename_symbols, separate_gates, simplify_reshapes, tidy


def value(name: str, *shape: int | str, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def parameter(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


def graph_of(inputs: list[ir.Value], nodes: list[ir.Node], parameters: list[ir.Value] = ()) -> ir.Model:
    graph = ir.Graph(inputs, nodes[-1].outputs, nodes=nodes, initializers=parameters, opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=10)


def reshape(before: tuple, after: tuple) -> tuple[ir.Model, ir.Node]:
    """A reshape whose target is computed at run time."""
    x, target = value("x", *before), value("target", len(after), dtype=ir.DataType.INT64)
    node = ir.node("Reshape", [x, target], outputs=[value("y", *after)])
    return graph_of([x, target], [node]), node


@pytest.mark.parametrize(
    ("before", "after", "target"),
    [
        (("N", 32, "h", "w"), ("N", 32, "h*w"), [0, 32, -1]),
        (("N", "h*w", 32), ("N", "h*w", 8, 4), [0, 0, 8, 4]),
        (("B*F", "h*w", 8, 4), (1, "B*F*h*w", 8, 4), [1, -1, 8, 4]),
    ],
)
def test_a_reshape_gets_a_constant_target_where_there_is_one(before: tuple, after: tuple, target: list[int]) -> None:
    model, node = reshape(before, after)
    simplify_reshapes(model)
    assert node.inputs[1].const_value.numpy().tolist() == target
    assert node.attributes["allowzero"].as_int() == 0


def test_a_reshape_with_two_unknown_axes_keeps_its_computed_target() -> None:
    model, node = reshape(("N", 32, "h*w"), ("N", 32, "h", "w"))
    simplify_reshapes(model)
    assert node.inputs[1].name == "target"


def test_symbols_are_renamed_within_expressions_but_not_within_names() -> None:
    x = value("x", "s1", "8*s12", "(s1 + 1)//2")
    model = graph_of([x], [ir.node("Identity", [x], outputs=[value("y", "s1*s12", 3, "s123")])])
    rename_symbols(model, {"s1": "h", "s12": "w"})
    assert [str(d) for d in x.shape] == ["h", "8*w", "(h + 1)//2"]
    assert [str(d) for d in model.graph.outputs[0].shape] == ["h*w", "3", "s123"]


def test_nodes_are_named_by_module_and_operator() -> None:
    x = value("x", 1)
    nodes = []
    for scopes in (
        "['', 'block', 'block.conv', 'conv2d']",
        "['', 'block', 'block.conv', 'add']",
        "['', 'silu']",
        "['', '_private', 'x']",
    ):
        nodes.append(ir.node("Relu", [nodes[-1].outputs[0] if nodes else x]))
        nodes[-1].metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    model = graph_of([x], nodes)
    name_nodes(model)
    assert [node.name for node in model.graph] == ["block.conv/Relu", "block.conv/Relu_2", "Relu", "Relu_2"]


def test_equal_parameters_stay_apart_while_equal_constants_become_one() -> None:
    x = value("x", "N", 4)
    ones = np.ones(4, np.float32)
    first, second = parameter("norm1.weight", ones), parameter("norm2.weight", ones)
    nodes = [ir.node("Mul", [x, first])]
    nodes.append(ir.node("Mul", [nodes[-1].outputs[0], second]))
    for _ in range(2):
        nodes.append(ir.node("Constant", [], {"value": ir.tensor(np.full(4, 0.5, np.float32))}))
        nodes.append(ir.node("Add", [nodes[-2].outputs[0], nodes[-1].outputs[0]]))
    model = graph_of([x], nodes, [first, second])
    tidy(model, symbols={})
    assert {"norm1.weight", "norm2.weight"} < set(model.graph.initializers)
    assert len(model.graph.initializers) == 3


def test_a_parameter_is_not_folded_into_its_transpose() -> None:
    x = value("x", "N", 4)
    weight = parameter("linear.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    transpose = ir.node("Transpose", [weight], {"perm": [1, 0]})
    model = graph_of([x], [transpose, ir.node("MatMul", [x, transpose.outputs[0]])], [weight])
    tidy(model, symbols={})
    np.testing.assert_array_equal(model.graph.initializers["linear.weight"].const_value.numpy(), weight.const_value)
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul"]


def gated(axis: int = -1, outputs: int = 2) -> ir.Model:
    """value * gate of one projection, cut into parts."""
    random = np.random.default_rng(0)
    x = value("x", "N", 3)
    weight = parameter("proj.weight", random.normal(size=(8, 3)).astype(np.float32))
    bias = parameter("proj.bias", random.normal(size=8).astype(np.float32))
    transposed = ir.node("Transpose", [weight], {"perm": [1, 0]})
    product = ir.node("MatMul", [x, transposed.outputs[0]])
    added = ir.node("Add", [product.outputs[0], bias], outputs=[value("added", "N", 8)])
    cut = ir.node("Split", [added.outputs[0]], {"axis": axis, "num_outputs": outputs}, num_outputs=outputs)
    for output in cut.outputs:
        output.shape, output.type = ir.Shape(["N", 8 // outputs]), ir.TensorType(ir.DataType.FLOAT)
    gate = ir.node("Sigmoid", [cut.outputs[1]])
    last = ir.node("Mul", [cut.outputs[0], gate.outputs[0]], outputs=[value("y", "N", 8 // outputs)])
    return graph_of([x], [transposed, product, added, cut, gate, last], [weight, bias])


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    return ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})[0]


def test_the_halves_of_a_gated_projection_are_computed_apart() -> None:
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    whole, apart = gated(), gated()
    separate_gates(apart)
    common.RemoveUnusedNodesPass()(apart)
    common.NameFixPass()(apart)
    kinds = [node.op_type for node in apart.graph]
    assert kinds.count("MatMul") == 2
    assert set(apart.graph.initializers) == {"proj.weight", "proj.bias"}
    assert all(node.inputs[0].name.startswith("proj.") for node in apart.graph if node.op_type == "Split")
    np.testing.assert_allclose(run(apart, x), run(whole, x), rtol=1e-6)


@pytest.mark.parametrize(("axis", "outputs"), [(0, 2), (1, 4)])
def test_other_splits_stay_as_they_are(axis: int, outputs: int) -> None:
    model = gated(axis, outputs)
    separate_gates(model)
    assert [node.op_type for node in model.graph].count("MatMul") == 1
