"""`Attention` for onnxruntime: the same numbers without the scores in memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vexpress_trt.engines.attention_rewrite import rewrite_attention

onnxruntime = pytest.importorskip("onnxruntime")

HEADS, SIZE = 2, 8


def _model(*, heads_first: bool = False, output_heads_first: bool = False, extra: tuple = (), **settings):
    """Query and key-value inputs [B, T, C]; with `heads_first` keys and values come as [1, H, S, C/H], as bindings."""
    shapes = {"q": ("B", "T", HEADS * SIZE), "k": ("B", "S", HEADS * SIZE), "v": ("B", "S", HEADS * SIZE)}
    if heads_first:
        shapes["k"] = shapes["v"] = ("B", HEADS, "S", SIZE)
    nodes, heads = [], {}
    for name, shape in shapes.items():
        heads[name] = name
        if len(shape) == 3:
            nodes.append(helper.make_node("Reshape", [name, "split"], [f"{name}_split"]))
            nodes.append(helper.make_node("Transpose", [f"{name}_split"], [f"{name}_heads"], perm=[0, 2, 1, 3]))
            heads[name] = f"{name}_heads"
    attended = "y" if output_heads_first else "attended"
    nodes.append(helper.make_node("Attention", [*heads.values(), *extra], [attended], name="attn", **settings))
    if not output_heads_first:
        nodes.append(helper.make_node("Transpose", ["attended"], ["joined"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", ["joined", "merge"], ["y"]))
    constants = {"split": [0, 0, HEADS, SIZE], "merge": [0, 0, HEADS * SIZE]}
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
        + [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("T", "S")) for name in extra],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor(name, TensorProto.INT64, [len(values)], values) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def _arrays(model: onnx.ModelProto, batch: int = 3) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    sizes = {"B": batch, "T": 5, "S": 7}
    return {
        value.name: random.standard_normal(
            [sizes.get(d.dim_param, d.dim_value) for d in value.type.tensor_type.shape.dim], np.float32
        )
        for value in model.graph.input
    }


def _run(model: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, arrays
    )[0]


def _expected(arrays: dict[str, np.ndarray], scale: float = SIZE**-0.5, *, output_heads_first: bool = False):
    """Softmax attention in float64, from its definition."""

    def split(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float64)
        return array if array.ndim == 4 else array.reshape(*array.shape[:2], HEADS, SIZE).transpose(0, 2, 1, 3)

    query, key, value = (split(arrays[name]) for name in "qkv")
    scores = np.exp(query @ key.swapaxes(-1, -2) * scale)
    result = scores / scores.sum(-1, keepdims=True) @ value
    if output_heads_first:
        return result
    return result.transpose(0, 2, 1, 3).reshape(len(result), -1, HEADS * SIZE)


@pytest.mark.parametrize("heads_first", [False, True], ids=["own keys", "keys as bindings"])
@pytest.mark.parametrize("output_heads_first", [False, True], ids=["joined", "heads kept"])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_rewritten_graph_attends_the_same(heads_first, output_heads_first, scale, batch) -> None:
    settings = {} if scale is None else {"scale": scale}
    model = _model(heads_first=heads_first, output_heads_first=output_heads_first, **settings)
    arrays = _arrays(model, batch)
    done = rewrite_attention(model)
    assert (done.replaced, done.kept) == (1, ())
    assert [node.op_type for node in model.graph.node if "ttention" in node.op_type] == ["MultiHeadAttention"]
    expected = _expected(arrays, scale or SIZE**-0.5, output_heads_first=output_heads_first)
    np.testing.assert_allclose(_run(model, arrays), expected, atol=2e-6)


def test_transposes_around_the_node_are_skipped_not_undone() -> None:
    model = _model()
    rewrite_attention(model)
    assert "Transpose" not in [node.op_type for node in model.graph.node]


def test_half_precision_is_computed_in_float32() -> None:
    model = _model()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    arrays = {name: array.astype(np.float16) for name, array in _arrays(model).items()}
    rewrite_attention(model, compute_float32=True)
    result = _run(model, arrays)
    assert result.dtype == np.float16
    np.testing.assert_allclose(result, _expected(arrays), atol=1e-3)


@pytest.mark.parametrize("settings", [{"is_causal": 1}, {"softcap": 2.0}, {"extra": ("mask",)}])
def test_what_has_no_counterpart_stays_and_is_named(settings: dict) -> None:
    model = _model(**settings)
    before = model.SerializeToString()
    done = rewrite_attention(model)
    assert (done.replaced, done.kept) == (0, ("attn",))
    assert model.SerializeToString() == before


def test_a_graph_without_attention_is_not_touched() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1,)) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]))
    before = model.SerializeToString()
    assert rewrite_attention(model).replaced == 0
    assert model.SerializeToString() == before


MEASURE = """
import resource, sys
import numpy as np, onnx
path, backend = sys.argv[1:]
shape = (1, 4, 4096, 40)
arrays = {name: np.ones(shape, np.float32) for name in "qkv"}
if backend == "onnxruntime":
    import onnxruntime
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    run = lambda: session.run(None, arrays)
else:
    import openvino
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU")
    run = lambda: compiled(arrays)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_scores_are_not_in_memory(tmp_path: Path, backend: str) -> None:
    """4 heads of 4096 x 4096 scores would be 256 MiB a copy."""
    pytest.importorskip(backend)
    pytest.importorskip("resource", reason="peak memory is asked of the system")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4, 4096, 40)) for name in "qkvy"]
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    graph = helper.make_graph([node], "attention", values[:3], values[3:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    if backend == "onnxruntime":
        rewrite_attention(model)
    path = tmp_path / "attention.onnx"
    onnx.save(model, path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), backend], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 128
