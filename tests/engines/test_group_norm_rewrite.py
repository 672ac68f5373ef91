"""`GroupNormalization` for onnxruntime: a real kernel and its two-pass variance."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vexpress_trt.engines.group_norm_rewrite import rewrite_group_norm

onnxruntime = pytest.importorskip("onnxruntime")

CHANNELS, GROUPS = 6, 3
SCALE = np.linspace(0.5, 2, CHANNELS, dtype=np.float32)
BIAS = np.linspace(-1, 1, CHANNELS, dtype=np.float32)


def _model(axes: int, kind: int = TensorProto.FLOAT, epsilon: float | None = 1e-3) -> onnx.ModelProto:
    shape = ("N", CHANNELS, *(f"d{axis}" for axis in range(axes)))
    settings = {} if epsilon is None else {"epsilon": epsilon}
    nodes = [
        helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["mid"], num_groups=GROUPS, **settings),
        helper.make_node("GroupNormalization", ["mid", "scale", "bias"], ["y"], num_groups=GROUPS, **settings),
    ]
    values = [helper.make_tensor_value_info(name, kind, shape) for name in "xy"]
    weights = [
        helper.make_tensor("scale", kind, [CHANNELS], SCALE),
        helper.make_tensor("bias", kind, [CHANNELS], BIAS),
    ]
    graph = helper.make_graph(nodes, "norm", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def _expected(x: np.ndarray, epsilon: float) -> np.ndarray:
    """Group normalization in float64, from its definition."""
    groups = x.astype(np.float64).reshape(len(x), GROUPS, -1)
    normal = (groups - groups.mean(-1, keepdims=True)) / np.sqrt(groups.var(-1, keepdims=True) + epsilon)
    per_channel = (CHANNELS, *[1] * (x.ndim - 2))
    return normal.reshape(x.shape) * SCALE.reshape(per_channel) + BIAS.reshape(per_channel)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("epsilon", [1e-3, None])
def test_the_rewritten_graph_normalises_the_same(axes: int, epsilon: float | None) -> None:
    model = _model(axes, epsilon=epsilon)
    assert rewrite_group_norm(model) == 2
    assert "GroupNormalization" not in [node.op_type for node in model.graph.node]
    x = np.random.default_rng(axes).standard_normal((2, CHANNELS, 5, 7, 3)[: axes + 2], np.float32) + 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    real = 1e-5 if epsilon is None else epsilon
    np.testing.assert_allclose(session.run(None, {"x": x})[0], _expected(_expected(x, real), real), atol=5e-6)


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    model = _model(2, epsilon=1e-5)
    rewrite_group_norm(model)
    x = (np.random.default_rng(0).standard_normal((1, CHANNELS, 32, 32)) + 300).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], _expected(_expected(x, 1e-5), 1e-5), atol=1e-3)


def test_half_precision_stays_as_it_is() -> None:
    model = _model(2, TensorProto.FLOAT16)
    assert rewrite_group_norm(model) == 0
    assert [node.op_type for node in model.graph.node] == ["GroupNormalization"] * 2
