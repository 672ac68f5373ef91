"""`verify --bisect` inside TensorRT: plans of the moment, by a builder that is played, and by TensorRT-RTX's own."""

from collections.abc import Callable
from pathlib import Path

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt import HostDriver
from onnx import TensorProto, helper

from vexpress_trt import cli
from vexpress_trt.engines import selection
from vexpress_trt.engines.bisect import bisect
from vexpress_trt.engines.bundle import ENGINES_FOLDER, Bundle, write_bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import GpuStatus
from vexpress_trt.engines.inside import Side, look_inside
from vexpress_trt.engines.manifest import PRECISION_DTYPE, GraphSpec, ModelConfig, TensorSpec
from vexpress_trt.engines.trt import momentary, probe
from vexpress_trt.engines.trt.builder import Build
from vexpress_trt.engines.trt.flavour import RTX, TensorRt
from vexpress_trt.engines.verify import read_vectors, vector_path, write_vectors

SIZES = {"N": 2, "h": 5, "w": 7}
SHAPE = ("N", 4, "h", "w")
# One operator of each kind, between convolutions that only pass on, and a reshape to a size that is computed.
CHAIN = (
    "Cast:typed Conv:start Relu:positive Sigmoid:gate Shape:size Reshape:same Conv:middle Tanh:bent Conv:end Cast:image"
).split()
TENSORS = "typed start positive gate same middle bent end image".split()
ELEMENTS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}


@pytest.fixture
def chain(tmp_path: Path, save_graph: Callable, model_config: ModelConfig) -> Bundle:
    """A bundle of one graph, a chain of nodes, in FP32 and FP16."""
    root, random = tmp_path / "chain.bundle", np.random.default_rng(1)
    weights = {f"{name}.weight": random.normal(0, 0.5, (4, 4, 1, 1)) for name in ("start", "middle", "end")}
    described = tuple(TensorSpec(name, "float32", SHAPE) for name in ("latents", "image"))
    values = [helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, SHAPE) for tensor in described]
    with write_bundle(root) as writer:
        specs = []
        for precision, element in ELEMENTS.items():
            path, typed = f"onnx/{precision}/vae_decoder.onnx", PRECISION_DTYPE[precision]
            arrays = {name: array.astype(typed) for name, array in weights.items()}
            save_graph(writer.path(path), nodes(element), values[:1], values[1:], arrays, "vae_decoder")
            files = (path, f"onnx/{precision}/vae_decoder.data")
            specs.append(GraphSpec("vae_decoder", precision, path, described[:1], described[1:], files))
        vectors = writer.path(vector_path("vae_decoder"))
        vectors.parent.mkdir(parents=True, exist_ok=True)
        write_vectors(vectors, SIZES, {"image": np.zeros((2, 4, 5, 7), np.float32)})
        writer.finish(
            model=model_config, graphs=specs, networks={}, random_weights=True, producer="tests 1.0", licence="none",
            provenance={"checkpoints": {}},
        )  # fmt: skip
    return Bundle.open(root)


def nodes(element: int) -> list:
    """`gate` is reshaped to the size of `positive`, which is its own."""
    made, last = [], "latents"
    for step in CHAIN:
        kind, name = step.split(":")
        inputs = {"Conv": [last, f"{name}.weight"], "Shape": ["positive"], "Reshape": ["gate", "size"]}.get(
            kind, [last]
        )
        to = {"typed": {"to": element}, "image": {"to": TensorProto.FLOAT}}.get(name, {})
        made.append(helper.make_node(kind, inputs, [name], name=f"net/{kind}_{name}", **to))
        last = name
    return made


HALF, REFERENCE = Side("tensorrt", "fp16"), Side("onnxruntime", "fp32")


def test_what_a_builder_gets_wrong_is_named_by_the_command(
    chain: Bundle, flavoured: TensorRt, machine: HostDriver, miscompiled, capsys, tmp_path: Path
) -> None:
    miscompiled(Sigmoid="HardSigmoid")
    command = ["verify", str(chain.root), "--backend", flavoured.backend, "--bisect", "onnxruntime"]
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    assert f"{flavoured.backend}/fp16 against onnxruntime/fp32" in out
    assert "first at gate, of net/Sigmoid_gate (Sigmoid): " in out
    assert "looked at 9 tensors, of 9 that both sides give and 9 in the graph" in out
    assert err.splitlines() == ["vae_decoder: its outputs", "vae_decoder: 9 of 9 tensors inside"]
    assert fake_tensorrt.Builder.built == [1, 9]
    # Nothing is left: no engine in the bundle, no file, no memory of the GPU.
    assert not (chain.root / ENGINES_FOLDER).exists()
    assert not list((tmp_path / "temporary").iterdir())
    assert not machine.memory and not machine.streams


def test_a_plan_is_for_this_gpu_and_the_test_inputs(
    chain: Bundle, flavoured: TensorRt, machine: HostDriver, monkeypatch
) -> None:
    given, run = [], Build.run
    monkeypatch.setattr(Build, "run", lambda self, *about: given.append(about) or run(self, *about))
    bisect(chain, Side(flavoured.backend, "fp16"), REFERENCE, threads=1)
    ((path, spec, profile, options, _),) = given
    assert path == chain.path(spec.path)  # whose weights it takes
    assert options.targets == (("sm89",) if flavoured.is_rtx else ()) and options.workspace == 8 << 30
    assert [tensor.shape for tensor in (*spec.inputs, *spec.outputs)] == [(2, 4, 5, 7)] * 2
    assert not profile.ranges


def test_one_plan_is_enough_where_sides_agree(chain: Bundle, machine: HostDriver) -> None:
    (result,) = bisect(chain, HALF, REFERENCE, threads=1)
    assert result.agrees and fake_tensorrt.Builder.built == [1]


def test_either_side_may_be_tensorrt(chain: Bundle, machine: HostDriver, miscompiled) -> None:
    miscompiled(Tanh="Sin")
    (result,) = bisect(chain, REFERENCE, HALF, threads=1)
    assert result.node == "net/Tanh_bent"
    (same,) = bisect(chain, HALF, Side("tensorrt", "fp32"), threads=1)  # both are wrong alike
    assert same.agrees


def test_plans_are_few_where_memory_is_short(chain: Bundle, machine: HostDriver, miscompiled) -> None:
    miscompiled(Sigmoid="HardSigmoid")
    (result,) = bisect(chain, HALF, REFERENCE, threads=1, chunk_bytes=1)
    assert result.tensor == "gate" and result.tensor_snr_db < 40 < result.before_db
    assert len(fake_tensorrt.Builder.built) <= 1 + 4 and max(fake_tensorrt.Builder.built) == 2


def test_what_only_fused_kernels_get_wrong_is_said(chain: Bundle, machine: HostDriver, miscompiled) -> None:
    miscompiled(only_fused=True, Sigmoid="HardSigmoid")
    (result,) = bisect(chain, HALF, REFERENCE, threads=1)
    assert not result.agrees and result.tensor is None and result.tensors == 9


def test_a_tensor_whose_size_is_not_known_before_a_run_is_left_out(
    chain: Bundle, machine: HostDriver, miscompiled, monkeypatch
) -> None:
    known = probe.known_shapes
    monkeypatch.setattr(
        probe, "known_shapes", lambda *given: {name: shape for name, shape in known(*given).items() if name != "gate"}
    )
    miscompiled(Sigmoid="HardSigmoid")
    (result,) = bisect(chain, HALF, REFERENCE, threads=1)
    assert (result.tensor, result.tensors, result.comparable, result.total) == ("same", 8, 8, 9)


def test_ctrl_c_says_that_it_stops_and_no_file_is_there_while_a_plan_is_built(
    chain: Bundle, flavoured: TensorRt, machine: HostDriver, files_at_ctrl_c: list[Path], capsys, tmp_path: Path
) -> None:
    """So a second one, which ends the process at once, leaves none either."""
    assert cli.main(["verify", str(chain.root), "--backend", flavoured.backend, "--bisect", "onnxruntime"]) == 130
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        "vae_decoder: its outputs",
        "stopping: waiting for the compiler; Ctrl-C again ends at once",
        "vexpress: interrupted",
    ]
    assert not files_at_ctrl_c and not list((tmp_path / "temporary").iterdir())
    assert not machine.memory and not machine.streams


def test_without_a_gpu_nothing_is_built(chain: Bundle, unbuilt, monkeypatch) -> None:
    monkeypatch.setattr(selection, "gpu_status", lambda: GpuStatus(None, (), "no NVIDIA driver"))
    with pytest.raises(UserError, match="the backend tensorrt-rtx cannot run here: no NVIDIA driver"):
        bisect(chain, REFERENCE, Side(RTX))


def test_another_type_than_the_graphs_is_refused_before_anything_is_built(chain: Bundle, machine, unbuilt) -> None:
    with pytest.raises(UserError, match="tensorrt computes in the graph's own precision, fp16, not in fp32: leave out"):
        bisect(chain, Side("tensorrt", "fp16", "fp32"), REFERENCE)


def test_too_little_memory_is_said_before_anything_is_built(chain: Bundle, machine, unbuilt, monkeypatch) -> None:
    def short(*given) -> None:
        raise UserError("building fp16 takes 99.0 GiB of memory")

    monkeypatch.setattr(momentary, "check_room", short)
    with pytest.raises(UserError, match="building fp16 takes 99.0 GiB"):
        bisect(chain, HALF, REFERENCE)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tensorrt_rtx_builds_every_tensor_of_a_chain_as_an_output(chain: Bundle, ahead: list, precision: str) -> None:
    inside = look_inside(chain, "vae_decoder", Side(RTX, precision), SIZES, 1)
    assert [tensor.name for tensor in inside.tensors] == TENSORS
    inside.run(TENSORS)
    (built,) = ahead
    typed, shape = PRECISION_DTYPE[precision], (2, 4, 5, 7)
    assert {b.name: (b.is_input, b.dtype, b.shape) for b in built} == {
        "latents": (True, "float32", shape),
        "image": (False, "float32", shape),
        **{name: (False, typed, shape) for name in TENSORS[:-1]},
    }


@pytest.mark.timeout(1200)  # the bundle is exported first
@pytest.mark.parametrize(("graph", "precision"), [("audio_encoder", "fp16"), ("denoiser_single", "bf16")])
def test_tensorrt_rtx_builds_every_tensor_of_a_network_as_an_output(
    typed_bundle: Path, ahead: list, graph: str, precision: str
) -> None:
    bundle = Bundle.open(typed_bundle)
    sizes, _ = read_vectors(bundle.path(vector_path(graph)))
    inside = look_inside(bundle, graph, Side(RTX, precision), sizes, 1)
    assert inside.tensors == inside.all
    inside.run([tensor.name for tensor in inside.tensors])
    (built,) = ahead
    types = {binding.name: binding.dtype for binding in built if not binding.is_input}
    assert types == {tensor.name: tensor.dtype for tensor in inside.tensors}
    assert all(binding.shape and min(binding.shape) > 0 for binding in built)
