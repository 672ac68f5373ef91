"""`verify` on TensorRT: stored engines where they take the test inputs, else plans of the moment that leave nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt import HostDriver, store_plan
from onnx import TensorProto, helper

from vexpress_trt import cli
from vexpress_trt.engines import selection, verify
from vexpress_trt.engines.bundle import Bundle, write_bundle
from vexpress_trt.engines.dims import evaluate
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import GpuStatus
from vexpress_trt.engines.manifest import GraphSpec, ModelConfig, TensorSpec
from vexpress_trt.engines.trt import preflight
from vexpress_trt.engines.trt.builder import Build
from vexpress_trt.engines.trt.flavour import RTX, TensorRt
from vexpress_trt.engines.trt.momentary import momentary_engine
from vexpress_trt.engines.trt.profile import ProfileSettings
from vexpress_trt.engines.verify import read_vectors, vector_inputs, vector_path, verify_bundle, write_vectors

GRAPHS = ("kps_guider", "vae_decoder")
SIZES = {"N": 2, "h": 5, "w": 7}
SHAPE = ("N", 4, "h", "w")
WEIGHT = np.random.default_rng(3).normal(0, 0.5, (4, 4)).astype(np.float32)
DYNAMIC = ProfileSettings("dynamic", image_width=64, image_height=64)  # takes N of 1 to 8, h and w of 4 to 8


@pytest.fixture
def pair(tmp_path: Path, save_graph: Callable, model_config: ModelConfig) -> Bundle:
    """A bundle of two graphs, each the sigmoid of a convolution, with test vectors that are right."""
    root = tmp_path / "pair.bundle"
    latents, image = (TensorSpec(name, "float32", SHAPE) for name in ("latents", "image"))
    values = [helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, SHAPE) for tensor in (latents, image)]
    nodes = [
        helper.make_node("Conv", ["latents", "weight"], ["mixed"]),
        helper.make_node("Sigmoid", ["mixed"], ["image"]),
    ]
    with write_bundle(root) as writer:
        specs = []
        for name in GRAPHS:
            path = f"onnx/fp32/{name}.onnx"
            save_graph(writer.path(path), nodes, values[:1], values[1:], {"weight": WEIGHT.reshape(4, 4, 1, 1)}, name)
            specs.append(GraphSpec(name, "fp32", path, (latents,), (image,), (path, f"onnx/fp32/{name}.data")))
            mixed = np.einsum("oc,nchw->nohw", WEIGHT, vector_inputs(specs[-1], SIZES)["latents"])
            write_vectors(writer.path(vector_path(name)), SIZES, {"image": 1 / (1 + np.exp(-mixed))})
        writer.finish(
            model=model_config, graphs=specs, networks={}, random_weights=True, producer="tests 1.0", licence="none",
            provenance={"checkpoints": {}},
        )  # fmt: skip
    return Bundle.open(root)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_beside_static_engines_every_graph_is_compared_and_nothing_is_left(
    pair: Bundle, flavoured: TensorRt, machine: HostDriver, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    for graph in GRAPHS:
        store_plan(pair, flavoured, graph)
    before = content(pair.root)
    assert cli.main(["verify", str(pair.root), "--backend", flavoured.backend]) == 0
    out, err = capsys.readouterr()
    assert out.count(" (image), momentary plan\n") == 2 and "all 2 graphs agree\nmomentary: no stored plan takes" in out
    assert "not the stored plans, whose bytes `vexpress engines verify` checks" in out
    assert err.splitlines() == [
        "1/2 kps_guider in fp32: building a plan for the test inputs",
        "2/2 vae_decoder in fp32: building a plan for the test inputs",
    ]
    assert fake_tensorrt.Builder.built == [1, 1]
    assert content(pair.root) == before
    assert not list((tmp_path / "temporary").iterdir())
    assert not machine.memory and not machine.streams


def test_a_stored_engine_is_used_where_it_takes_the_test_inputs(
    pair: Bundle, flavoured: TensorRt, machine: HostDriver, miscompiled, capsys: pytest.CaptureFixture
) -> None:
    """The stored one is right and the builder wrong, so they tell themselves apart."""
    store_plan(pair, flavoured, "kps_guider", settings=DYNAMIC)
    store_plan(pair, flavoured, "kps_guider")
    store_plan(pair, flavoured, "vae_decoder")
    miscompiled(Sigmoid="HardSigmoid")
    assert cli.main(["verify", str(pair.root), "--backend", flavoured.backend, "--json"]) == 1
    out, err = capsys.readouterr()
    found = {row["graph"]: (row["plan"], row["passed"]) for row in json.loads(out)}
    assert found == {"kps_guider": ("stored", True), "vae_decoder": ("momentary", False)}
    assert err == "1/1 vae_decoder in fp32: building a plan for the test inputs\n"
    assert cli.main(["verify", str(pair.root), "--backend", flavoured.backend]) == 1
    out, _ = capsys.readouterr()
    assert "(image), stored plan\n" in out and "(image), momentary plan  FAILED\n" in out


def test_where_stored_engines_take_all_nothing_is_built(
    pair: Bundle, flavoured: TensorRt, machine: HostDriver, unbuilt, capsys: pytest.CaptureFixture
) -> None:
    for graph in GRAPHS:
        store_plan(pair, flavoured, graph, settings=DYNAMIC)
    assert cli.main(["verify", str(pair.root), "--backend", flavoured.backend]) == 0
    out, err = capsys.readouterr()
    assert out.count(", stored plan") == 2 and "momentary" not in out and not err


def test_a_bundle_without_engines_is_checked_alike(pair: Bundle, flavoured: TensorRt, machine: HostDriver) -> None:
    results = verify_bundle(pair, flavoured.backend)
    assert [(result.graph, result.plan, result.passed) for result in results] == [
        (g, "momentary", True) for g in GRAPHS
    ]


def test_test_vectors_are_read_once(pair: Bundle, flavoured: TensorRt, machine: HostDriver, monkeypatch) -> None:
    paths: list[Path] = []
    monkeypatch.setattr(verify, "read_vectors", lambda path: paths.append(path) or read_vectors(path))
    store_plan(pair, flavoured, "kps_guider", settings=DYNAMIC)
    assert [result.plan for result in verify_bundle(pair, flavoured.backend)] == ["stored", "momentary"]
    assert paths == [pair.path(vector_path(graph)) for graph in GRAPHS]


def test_other_backends_have_no_plans(pair: Bundle) -> None:
    assert {result.plan for result in verify_bundle(pair, "onnxruntime")} == {None}


def test_a_damaged_engine_that_takes_the_test_inputs_is_refused(pair: Bundle, flavoured: TensorRt, machine) -> None:
    plan = store_plan(pair, flavoured, "kps_guider", settings=DYNAMIC)
    plan.write_bytes(plan.read_bytes().replace(b"kps", b"spk"))
    with pytest.raises(UserError, match=f"the content of {plan.name} has changed; build with"):
        verify_bundle(pair, flavoured.backend)


def test_a_plan_is_for_this_gpu_and_the_test_inputs(
    pair: Bundle, flavoured: TensorRt, machine: HostDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, run = [], Build.run
    monkeypatch.setattr(Build, "run", lambda self, *about: given.append(about) or run(self, *about))
    verify_bundle(pair, flavoured.backend)
    for path, spec, profile, options, _ in given:
        assert path == pair.path(spec.path)  # gigabytes of weights are not copied
        assert profile.name == "N2_h5_w7" and all(own.is_fixed for own in profile.ranges.values())
        assert options.targets == (("sm89",) if flavoured.is_rtx else ()) and options.workspace == 8 << 30


def test_ctrl_c_ends_the_builder_at_its_next_step_and_leaves_nothing(
    pair: Bundle, flavoured: TensorRt, machine: HostDriver, files_at_ctrl_c: list[Path], capsys, tmp_path: Path
) -> None:
    """A second one ends the process at once: so nothing may be in the folder while the builder works."""
    before = content(pair.root)
    assert cli.main(["verify", str(pair.root), "--backend", flavoured.backend]) == 130
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        "1/2 kps_guider in fp32: building a plan for the test inputs",
        "stopping: waiting for the compiler; Ctrl-C again ends at once",
        "vexpress: interrupted",
    ]
    assert not files_at_ctrl_c and not list((tmp_path / "temporary").iterdir()) and content(pair.root) == before


def test_ctrl_c_while_a_plan_runs_leaves_nothing(
    pair: Bundle, flavoured: TensorRt, machine: HostDriver, monkeypatch, tmp_path: Path
) -> None:
    def interrupted(self: fake_tensorrt.IExecutionContext, stream: int) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(fake_tensorrt.IExecutionContext, "execute_async_v3", interrupted)
    assert cli.main(["verify", str(pair.root), "--backend", flavoured.backend]) == 130
    assert not list((tmp_path / "temporary").iterdir()) and not machine.memory and not machine.streams


def test_without_a_gpu_it_is_one_sentence(pair: Bundle, unbuilt, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(selection, "gpu_status", lambda: GpuStatus(None, (), "no NVIDIA driver"))
    assert cli.main(["verify", str(pair.root), "--backend", RTX]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(
        f"vexpress: error: the backend {RTX} cannot run here: no NVIDIA driver; here work"
    )
    assert err.count("\n") == 1


def test_what_is_known_to_be_wrong_is_said_before_the_first_build(
    pair: Bundle, flavoured: TensorRt, machine: HostDriver, unbuilt, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=f"{flavoured.backend} computes in the graph's own precision, fp32, not in fp16"
    ):
        verify_bundle(pair, flavoured.backend, dtype="fp16")
    usage = preflight.shutil.disk_usage(pair.root)
    with monkeypatch.context() as patch:
        patch.setattr(preflight.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(
            UserError, match="free at .*/temporary: make room or set TMPDIR to a folder on another disk"
        ):
            verify_bundle(pair, flavoured.backend)
    (pair.root / vector_path("vae_decoder")).unlink()
    with pytest.raises(UserError, match="vae_decoder.npz is missing"):
        verify_bundle(pair, flavoured.backend)


@pytest.mark.timeout(1200)  # the bundle is exported first
def test_tensorrt_rtx_builds_every_graph_for_its_test_inputs(typed_bundle: Path, ahead: list) -> None:
    bundle = Bundle.open(typed_bundle)
    for spec in [spec for spec in bundle.manifest.graphs if spec.precision == "fp16"]:
        sizes, _ = read_vectors(bundle.path(vector_path(spec.name)))
        with momentary_engine(bundle, spec, RTX, sizes):
            bindings = ahead.pop()
        tensors = [*spec.inputs, *spec.outputs]
        for binding, tensor in zip(bindings, tensors, strict=True):
            declared = [evaluate(dimension, sizes) for dimension in tensor.shape]
            assert (binding.name, binding.dtype) == (tensor.name, tensor.dtype) and min(binding.shape) > 0
            assert all(size in (None, found) for size, found in zip(declared, binding.shape, strict=True))
