"""The first tensor on which two sides part, its node, and how good everything before it was."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from vexpress_trt import cli
from vexpress_trt.engines import selection
from vexpress_trt.engines.bisect import Divergence, Side, bisect, format_divergences, signal_to_error
from vexpress_trt.engines.bundle import Bundle, write_bundle
from vexpress_trt.engines.cpu import Cpu, cpu
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import GpuStatus
from vexpress_trt.engines.intermediates import Probe
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.engines.verify import vector_path, write_vectors

SHAPE = ("N", 4, "h", "w")
SIZES = {"N": 2, "h": 5, "w": 7}
RANDOM = np.random.default_rng(0)
WEIGHTS = {f"{name}.weight": RANDOM.normal(0, 0.5, (4, 4, 1, 1)).astype(np.float32) for name in ("first", "second")}
NODES = [
    ("Cast", ["latents"], "typed"),
    ("Conv", ["typed", "first.weight"], "mixed"),
    ("Relu", ["mixed"], "positive"),
    ("Shape", ["positive"], "sizes"),
    ("Conv", ["positive", "second.weight"], "again"),
    ("Sigmoid", ["again"], "gate"),
    ("Mul", ["again", "gate"], "gated"),
    ("Cast", ["gated"], "image"),
]


def write_graph(writer, save_graph, model_name: str, precision: str, damage: str | None) -> GraphSpec:
    """One graph; `damage` "weight" changes one number of the second convolution, "operator" takes another gate."""
    element, dtype = {"fp32": (TensorProto.FLOAT, np.float32), "fp16": (TensorProto.FLOAT16, np.float16)}[precision]
    nodes = []
    for kind, inputs, output in NODES:
        kind = "HardSigmoid" if damage == "operator" and kind == "Sigmoid" else kind
        to = {"typed": {"to": element}, "image": {"to": TensorProto.FLOAT}}.get(output, {})
        nodes.append(helper.make_node(kind, inputs, [output], name=f"net/{kind}_{output}", **to))
    weights = {name: array.astype(dtype) for name, array in WEIGHTS.items()}
    if damage == "weight":
        weights["second.weight"][2, 1] += 1
    path = f"onnx/{precision}/{model_name}.onnx"
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in ("latents", "image")]
    save_graph(writer.path(path), nodes, value[:1], value[1:], weights, model_name)
    tensors = [TensorSpec(name, "float32", SHAPE) for name in ("latents", "image")]
    files = (path, f"onnx/{precision}/{model_name}.data")
    return GraphSpec(model_name, precision, path, (tensors[0],), (tensors[1],), files)


@pytest.fixture
def make(tmp_path: Path, save_graph, model_config):
    """A bundle with a graph in FP32 and in FP16; of the latter one thing can be wrong."""

    def bundle(damage: str | None = None) -> Bundle:
        root = tmp_path / "two.bundle"
        with write_bundle(root) as writer:
            specs = (
                write_graph(writer, save_graph, "vae_decoder", "fp32", None),
                write_graph(writer, save_graph, "vae_decoder", "fp16", damage),
            )
            path = writer.path(vector_path("vae_decoder"))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_vectors(path, SIZES, {"image": np.zeros((2, 4, 5, 7), np.float32)})
            names = {"producer": "tests 1.0", "licence": "none", "provenance": {"checkpoints": {}}}
            writer.finish(model=model_config, graphs=specs, networks={}, random_weights=True, **names)
        return Bundle.open(root)

    return bundle


HALF, WHOLE = Side("onnxruntime", "fp16"), Side("onnxruntime", "fp32")


@pytest.mark.parametrize("chunk_bytes", [1, 2000, 1 << 20])
@pytest.mark.parametrize(
    ("damage", "tensor", "node"),
    [("weight", "again", "net/Conv_again"), ("operator", "gate", "net/HardSigmoid_gate")],
)
def test_one_damaged_thing_is_located_exactly(make, damage: str, tensor: str, node: str, chunk_bytes: int) -> None:
    (result,) = bisect(make(damage), HALF, WHOLE, chunk_bytes=chunk_bytes)
    assert not result.agrees and result.snr_db < result.threshold_db == 40.0
    assert (result.tensor, result.node, result.operator) == (tensor, node, node.split("/")[1].split("_")[0])
    assert result.tensor_snr_db < 40 < result.before_db < 100


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (HALF, WHOLE),
        (Side("openvino", "fp32", "fp32"), WHOLE),
        (Side("openvino", "fp32", "bf16"), Side("openvino", "fp32", "fp32")),
        (Side("openvino", "fp16", "fp32"), HALF),
    ],
)
def test_sides_that_differ_by_rounding_agree(make, one: Side, other: Side) -> None:
    (result,) = bisect(make(), one, other, threads=1)
    assert result.agrees and result.tensor is None
    assert result.snr_db < 300 or one.dtype == "fp32"


def test_a_damaged_side_is_found_on_the_other_backend_too(make) -> None:
    (result,) = bisect(make("operator"), Side("openvino", "fp16", "fp32"), Side("openvino", "fp32", "fp32"))
    assert result.tensor == "gate"


def test_a_stricter_threshold_finds_where_rounding_begins(make) -> None:
    (result,) = bisect(make(), HALF, WHOLE, threshold=100.0)
    assert not result.agrees and result.threshold_db == 100.0
    assert (result.tensor, result.before_db) == ("mixed", 300.0)  # the values of the inputs are exact in FP16
    assert format_divergences([result], HALF, WHOLE).splitlines()[2].endswith(" dB, before it no difference")


def test_a_threshold_of_zero_is_one(make) -> None:
    (result,) = bisect(make("weight"), HALF, WHOLE, threshold=0.0)
    assert result.agrees and 0 < result.snr_db < 40 and result.threshold_db == 0


@pytest.mark.parametrize("threshold", [-0.1, 300.1, float("inf"), float("nan")])
def test_a_threshold_that_says_nothing_is_refused(make, threshold: float) -> None:
    with pytest.raises(UserError, match=rf"--threshold {threshold:g}: give dB from 0 to 300, which equal"):
        bisect(make(), HALF, WHOLE, threshold=threshold)


def test_an_unknown_graph_is_named_before_the_first_look(make) -> None:
    looks: list[str] = []
    with pytest.raises(UserError, match="has no graph nope .it has: vae_decoder."):
        bisect(make(), HALF, WHOLE, graphs=["vae_decoder", "nope"], report=looks.append)
    assert not looks


def test_a_graph_that_is_named_twice_is_compared_once(make) -> None:
    assert len(bisect(make(), HALF, WHOLE, graphs=["vae_decoder"] * 2)) == 1


def test_the_tensors_of_a_graph_are_the_floating_ones_in_the_order_of_the_nodes(make) -> None:
    bundle = make()
    tensors = Probe(bundle, bundle.graph("vae_decoder", "fp16")).tensors
    assert [tensor.name for tensor in tensors] == "typed mixed positive again gate gated image".split()
    assert {tensor.dtype for tensor in tensors[:-1]} == {"float16"} and tensors[-1].dtype == "float32"


def test_signal_to_error_of_zeros_infinities_and_shapes() -> None:
    zeros, infinite = np.zeros(100, np.float32), np.array([1.0, np.inf], np.float32)
    assert signal_to_error(zeros, zeros) == 300.0 == signal_to_error(infinite, infinite)
    assert signal_to_error(zeros, zeros + 1e-3) == pytest.approx(60.0)
    assert signal_to_error(infinite, np.ones(2)) == -np.inf == signal_to_error(zeros, zeros[:9])


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (WHOLE, WHOLE, "--bisect onnxruntime: both sides are onnxruntime/fp32; name another backend, or another type"),
        (Side("torch"), WHOLE, "has no configuration 'vae' in its manifest, so torch cannot rebuild vae_decoder"),
        (Side("onnxruntime", "bf16"), WHOLE, "in fp32, fp16 only; add it with `vexpress export"),
    ],
)
def test_what_cannot_be_compared_is_refused(make, one: Side, other: Side, said: str) -> None:
    if one.backend == "torch":
        pytest.importorskip("torch")
    with pytest.raises(UserError, match=said):
        bisect(make(), one, other)


def test_openvino_against_the_type_that_it_takes_by_itself_is_one_side(make, monkeypatch) -> None:
    monkeypatch.setattr("vexpress_trt.engines.bisect.cpu", lambda: Cpu("some", ("avx512_bf16",)))
    with pytest.raises(UserError, match="both sides are openvino/fp32/bf16; name another"):
        bisect(make(), Side("openvino", "fp32"), Side("openvino", "fp32", "bf16"))


def test_a_full_temporary_folder_names_one_that_needs_no_space(make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*paths: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", fail)  # another disk
    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(UserError, match="no space left on device; set TMPDIR to a folder on the disk of .*b"):
        bisect(make(), Side("onnxruntime", "fp32"), Side("onnxruntime", "fp16"))


def test_the_command_tells_and_ends_with_1_where_sides_diverge(make, capsys) -> None:
    root = str(make("weight").root)
    command = "--backend onnxruntime --precision fp16 --bisect onnxruntime --bisect_precision fp32".split()
    assert cli.main(["verify", root, *command]) == 1
    said = capsys.readouterr().out
    assert "onnxruntime/fp16 against onnxruntime/fp32" in said and "DIVERGES" in said
    assert "first at again, of net/Conv_again (Conv): " in said
    assert cli.main(["verify", root, *command, "--graph", "vae_decoder", "--threshold", "0.1", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["agrees"] and result["tensor"] is None
    assert cli.main(["verify", root, "--backend", "openvino", "--bisect", "onnxruntime", "--threshold", "0.1"]) == 0
    chosen = f"openvino/fp32/{cpu().fastest_dtype} against onnxruntime/fp32"
    assert chosen in capsys.readouterr().out
    assert cli.main(["verify", root, "--threshold", "1"]) == 2
    assert "--threshold is about --bisect" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["torch-cuda", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"])
def test_a_gpu_that_is_not_there_is_one_sentence(make, backend: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(selection, "gpu_status", lambda: GpuStatus(None, (), "no NVIDIA driver"))
    root = str(make().root)
    for sides in (["onnxruntime", "--bisect", backend], [backend, "--bisect", "onnxruntime"]):
        assert cli.main(["verify", root, "--backend", *sides]) == 2
        said = capsys.readouterr().err
        assert f"the backend {backend} cannot run here: no NVIDIA driver; here work: " in said
        assert said.count("\n") == 1


@pytest.mark.parametrize("by_a_node", [True, False])
def test_an_output_of_weights_alone_that_differs_is_named(
    by_a_node: bool, tmp_path: Path, save_graph, model_config, capsys
) -> None:
    """With a node that makes it of a weight, or as a weight that is an output itself."""
    root, made = tmp_path / "table.bundle", ("table" if by_a_node else "w")
    tensors = [TensorSpec("latents", "float32", SHAPE), TensorSpec("image", "float32", SHAPE)]
    tensors += [TensorSpec(made, "float32", (4,))]
    values = [helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.shape) for tensor in tensors]
    nodes = [helper.make_node("Relu", ["latents"], ["image"]), helper.make_node("Sigmoid", ["w"], ["table"], name="s")]
    with write_bundle(root) as writer:
        specs = []
        for precision, weight in (("fp32", 1.0), ("fp16", 5.0)):
            path = f"onnx/{precision}/vae_decoder.onnx"
            weights = {"w": np.full(4, weight, np.float32)}
            save_graph(writer.path(path), nodes, values[:1], values[1:], weights, "vae_decoder")
            files = (path, f"onnx/{precision}/vae_decoder.data")
            specs.append(GraphSpec("vae_decoder", precision, path, tuple(tensors[:1]), tuple(tensors[1:]), files))
        path = writer.path(vector_path("vae_decoder"))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_vectors(path, SIZES, {"image": np.zeros((2, 4, 5, 7), np.float32)})
        names = {"producer": "tests 1.0", "licence": "none", "provenance": {"checkpoints": {}}}
        writer.finish(model=model_config, graphs=tuple(specs), networks={}, random_weights=True, **names)
    command = ["verify", str(root), "--backend", "onnxruntime", "--precision", "fp16"]
    assert cli.main([*command, "--bisect", "onnxruntime", "--bisect_precision", "fp32"]) == 1
    said = capsys.readouterr().out
    if by_a_node:
        assert "first at table, of s (Sigmoid): " in said and "and depends on weights alone: compare those of" in said
    else:
        assert "nothing that its wrong outputs depend on can be compared" in said


def test_where_only_fused_kernels_differ_that_is_said() -> None:
    said = format_divergences([Divergence("vae_decoder", 3.0, 40.0, 7, 8, 9)], HALF, WHOLE)
    assert "no tensor that was looked at does when it is asked for: look at fused kernels" in said
    assert "looked at 7 tensors, of 8 that both sides give and 9 in the graph" in said
