"""Graphs for TensorRT 10.12 and 10.13: the same numbers without `Attention`, in an opset that their parsers take."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.trt.builder import Build, BuildOptions, is_attention, make_attention_decomposable, shared_log
from vexpress_trt.engines.trt.flavour import TENSORRT, TensorRt
from vexpress_trt.engines.trt.foresight import least_working_memory
from vexpress_trt.engines.trt.older_parsers import OPSET, for_older_parsers, rewrite
from vexpress_trt.engines.trt.parsing import parsed
from vexpress_trt.engines.trt.profile import ProfileSettings
from vexpress_trt.engines.verify import difference, vector_inputs

pytestmark = pytest.mark.timeout(1200)  # the first one exports the bundle, which a busy machine makes slow
SIZES = {"h": 8, "w": 8, "F": 4, "B": 1, "N": 3, "S": 4000}
WITHOUT_ATTENTION = ["kps_guider"]
NAMES = json.loads(Path(__file__).with_name("api_names.json").read_text())["missing"]


class Lacking:
    """A module without some of its names, given as "Class" or "Enumeration.VALUE"."""

    def __init__(self, module: Any, names: Iterable[str]) -> None:
        self._module, self._names = module, frozenset(names)

    def __getattr__(self, name: str) -> Any:
        if name in self._names:
            raise AttributeError(name)
        inside = [other.partition(".")[2] for other in self._names if other.startswith(f"{name}.")]
        value = getattr(self._module, name)
        return Lacking(value, inside) if inside else value


@pytest.fixture(scope="module")
def oldest(rtx: TensorRt) -> TensorRt:
    """TensorRT 10.12, as far as it can be had: TensorRT-RTX's parser and builder without the names of attention."""
    lacking = set(NAMES["tensorrt_cu12_bindings 10.12.0.36"]) - set(NAMES["tensorrt_cu13_bindings 11.4.0.106"])
    assert "LayerType.ATTENTION_INPUT" in lacking
    return TensorRt(TENSORRT, Lacking(rtx.module, lacking), "10.12.0.36")


@pytest.fixture(scope="module", params=[("other_bundle", "fp32"), ("typed_bundle", "fp16"), ("typed_bundle", "bf16")])
def graphs(request: pytest.FixtureRequest) -> list[tuple[Path, GraphSpec]]:
    """All of a small model in one precision: files and specifications."""
    name, precision = request.param
    bundle = Bundle.open(request.getfixturevalue(name))
    return [(bundle.path(spec.path), spec) for spec in bundle.manifest.graphs if spec.precision == precision]


def rewritten(path: Path) -> bytes:
    """The graph of a file as the older parsers get it."""
    model = onnx.load(path, load_external_data=False)
    for_older_parsers(model, path)
    return model.SerializeToString()


def outputs(model: bytes, folder: Path, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Of a model whose weights lie in `folder`, by onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, inputs)


def test_a_rewritten_graph_computes_what_the_plain_one_does(graphs: list[tuple[Path, GraphSpec]]) -> None:
    if graphs[0][1].precision == "bf16":
        pytest.skip("onnxruntime has no BF16 on the CPU")
    for path, spec in graphs:
        inputs = vector_inputs(spec, SIZES)
        plain = outputs(path.read_bytes(), path.parent, inputs)
        older = outputs(rewritten(path), path.parent, inputs)
        for one, other in zip(plain, older, strict=True):
            assert other.dtype == one.dtype and other.shape == one.shape
            assert difference(one, other)[0] > (100 if spec.precision == "fp32" else 55), spec.name


def test_every_operator_is_of_the_older_opset_and_takes_the_types_it_is_given(
    graphs: list[tuple[Path, GraphSpec]],
) -> None:
    for path, spec in graphs:
        plain = onnx.load(path, load_external_data=False)
        model = onnx.load_from_string(rewritten(path))
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
        ours = [node.op_type for node in plain.graph.node]
        theirs = [node.op_type for node in model.graph.node]
        assert (ours.count("Attention") == 0) == (spec.name in WITHOUT_ATTENTION)
        assert "Attention" not in theirs and theirs.count("Softmax") == ours.count("Attention")
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def test_nothing_is_written_and_no_weight_is_read(graphs: list[tuple[Path, GraphSpec]]) -> None:
    path, _ = max(graphs, key=lambda graph: graph[0].stat().st_size)
    before = {file: file.stat().st_mtime_ns for file in path.parents[2].rglob("*")}
    assert len(rewritten(path)) < path.stat().st_size * 1.2
    assert {file: file.stat().st_mtime_ns for file in path.parents[2].rglob("*")} == before


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("graph", ["audio_encoder", "reference", "denoiser_guided", "vae_decoder"])
def test_the_nearest_real_builder_builds_it_without_a_name_that_the_oldest_lacks(
    oldest: TensorRt, typed_bundle: Path, graph: str, precision: str
) -> None:
    bundle = Bundle.open(typed_bundle)
    spec = bundle.graph(graph, precision)
    path = bundle.path(spec.path)
    profile = ProfileSettings().of(spec, bundle.manifest.model)
    assert "attention" not in least_working_memory(oldest, spec, path, profile).what
    plan = Build(oldest).run(path, spec, profile, BuildOptions(("sm89", "sm120")))
    assert [binding.name for binding in plan.bindings] == [tensor.name for tensor in (*spec.inputs, *spec.outputs)]
    weights = sum(bundle.manifest.files[file].size for file in spec.files if file.endswith(".data"))
    assert memoryview(plan.data).nbytes > weights // 2  # they were found, although the graph was not read from its file


@pytest.mark.parametrize(("version", "attentions"), [("10.12.0.36", 0), ("10.13.3.9", 0), ("10.14.1", 3), ("11.4", 3)])
def test_the_version_decides_which_graph_is_parsed(
    rtx: TensorRt, typed_bundle: Path, version: str, attentions: int
) -> None:
    bundle = Bundle.open(typed_bundle)
    spec = bundle.graph("audio_encoder", "fp16")
    trt = rtx.module
    log = shared_log(trt)
    tensorrt = TensorRt(TENSORRT, trt, version)
    network = parsed(tensorrt, trt.Builder(log), log, spec, bundle.path(spec.path))
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    assert sum(is_attention(trt, layer) for layer in layers) == attentions
    assert sum(layer.type == trt.LayerType.SOFTMAX for layer in layers) == 3 - attentions
    assert make_attention_decomposable(trt, network) == attentions


def model_of(*nodes: onnx.NodeProto, opset: int = 23, element: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """A model from q, k and v to y: two heads of 8 channels."""
    values = [helper.make_tensor_value_info(name, element, (1, 2, 5, 8)) for name in "qkvy"]
    graph = helper.make_graph(list(nodes), "g", values[:3], values[3:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize("settings", [{}, {"scale": 0.5}, {"softcap": 0.0, "is_causal": 0, "qk_matmul_output_mode": 0}])
def test_an_attention_becomes_products_of_scaled_queries(settings: dict[str, Any]) -> None:
    model = model_of(helper.make_node("Attention", ["q", "k", "v"], ["y"], name="a", **settings))
    rewrite(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Mul", "Transpose", "MatMul", "Softmax", "MatMul"]
    (scale,) = (onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    assert scale == np.float16(settings.get("scale", 8**-0.5)) and scale.dtype == np.float16
    assert model.graph.node[0].input[0] == "q"


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([helper.make_node("Attention", ["q", "k", "v"], ["y"], name="a", is_causal=1)], "attention a has is_causal"),
        ([helper.make_node("Attention", ["q", "k", "v"], ["y"], name="a", softcap=2.0)], "attention a has softcap"),
        ([helper.make_node("Attention", ["q", "k", "v"], ["y"], name="a", q_num_heads=2)], "a has q_num_heads"),
        ([helper.make_node("Attention", ["q", "k", "v", "q"], ["y"], name="a")], "attention a has more inputs"),
        (
            [helper.make_node("Attention", ["q", "k", "v"], ["y", "z"], name="a")],
            "attention a has more inputs or outputs",
        ),
        (
            [helper.make_node("Relu", ["k"], ["r"]), helper.make_node("Attention", ["q", "r", "v"], ["y"], name="a")],
            "attention a has heads of unknown or different sizes",
        ),
        (
            [helper.make_node("RMSNormalization", ["q", "k"], ["y"], name="n")],
            "operator RMSNormalization of n is of opset 23",
        ),
        ([helper.make_node("DequantizeLinear", ["q", "k"], ["y"], name="d")], "DequantizeLinear of d is of opset 23"),
        ([helper.make_node("NoSuch", ["q"], ["y"], name="x")], "operator NoSuch of x is of opset 23"),
    ],
)
def test_what_cannot_be_said_in_the_older_opset_is_named(tmp_path: Path, nodes: list, said: str) -> None:
    remedy = "which is not rewritten for TensorRT before 10.14: install a newer"
    with pytest.raises(UserError, match=rf"g.onnx: .*{said}.*, {remedy}"):
        for_older_parsers(model_of(*nodes), tmp_path / "g.onnx")


def test_a_graph_of_an_older_opset_keeps_it() -> None:
    model = model_of(helper.make_node("Relu", ["q"], ["y"]), opset=20)
    before = model.SerializeToString()
    rewrite(model)
    assert model.SerializeToString() == before


def test_attention_is_not_asked_for_where_networks_have_none() -> None:
    layer = SimpleNamespace(type="CONVOLUTION")
    network = SimpleNamespace(num_layers=1, get_layer=lambda index: layer)
    assert make_attention_decomposable(SimpleNamespace(LayerType=SimpleNamespace()), network) == 0
