"""Checkpoints become a bundle whose graphs compute the torch modules at any size, or nothing is written."""

import json
import logging
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
from vexpress_trt import cli  # noqa: E402
from vexpress_trt.engines.bundle import Bundle  # noqa: E402
from vexpress_trt.engines.engine import load_engine  # noqa: E402
from vexpress_trt.engines.errors import UserError  # noqa: E402
from vexpress_trt.engines.verify import THRESHOLDS_DB, difference, vector_inputs, verify_bundle  # noqa: E402
from vexpress_trt.export import build_bundle  # noqa: E402
from vexpress_trt.export.build_bundle import export_bundle, model_config  # noqa: E402
from vexpress_trt.export.checkpoints import Checkpoints, load_checkpoints  # noqa: E402
from vexpress_trt.export.graphs import Graph, graphs  # noqa: E402
from vexpress_trt.export.parity import example_arguments, module_of  # noqa: E402

SMALL = ("kps_guider", "audio_projection")


@pytest.fixture(scope="module")
def checkpoints(other_checkpoints: Path) -> Checkpoints:
    return load_checkpoints(other_checkpoints)


@pytest.fixture
def only_small_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles of two graphs that export in a second or two each."""
    _export_only(monkeypatch, *SMALL)


def _export_only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(
        build_bundle, "graphs", lambda c, **form: tuple(g for g in graphs(c, **form) if g.name in names)
    )


# Two sets of sizes besides those the graphs were traced with and checked at: odd, not square, several windows, frames
# and pictures; and the smallest there are. Both latents' heights or widths are not multiples of eight.
SIZES = [
    {"B": 2, "F": 5, "h": 12, "w": 20, "N": 5, "S": 16000},
    {"B": 1, "F": 1, "h": 3, "w": 1, "N": 1, "S": 400},
]


@pytest.mark.parametrize("sizes", SIZES, ids=["large", "smallest"])
@pytest.mark.parametrize(
    "name",
    ["audio_encoder", "audio_projection", "kps_guider", "vae_encoder", "reference", "denoiser_guided",
     "denoiser_single", "vae_decoder"],
)  # fmt: skip
def test_a_graph_computes_its_module_at_any_size(
    name: str, sizes: dict[str, int], other_bundle: Path, checkpoints: Checkpoints
) -> None:
    graph = next(graph for graph in graphs(checkpoints) if graph.name == name)
    own = {symbol: sizes[symbol] for symbol in graph.traced}
    with torch.inference_mode():
        expected = module_of(graph, checkpoints, "fp32")(*example_arguments(graph, "fp32", own))
    expected = expected if isinstance(expected, tuple | list) else (expected,)
    with load_engine(Bundle.open(other_bundle), name, backend="onnxruntime", precision="fp32") as engine:
        outputs = engine.run(**vector_inputs(graph.spec("fp32"), own))
    for tensor, reference in zip(graph.outputs, expected, strict=True):
        snr, _ = difference(reference.numpy(), outputs[tensor.name])
        assert snr > 95, tensor.name


def test_every_attention_of_the_networks_is_one_node(other_bundle: Path, checkpoints: Checkpoints) -> None:
    blocks, motions = 4, 2 + 1 + 4  # two levels with one layer: transformers in one of them, motion modules everywhere
    expected = {
        "audio_encoder": checkpoints.wav2vec2_config["num_hidden_layers"],
        "audio_projection": checkpoints.networks.projection.depth,
        "kps_guider": 0,
        "vae_encoder": 1,
        "vae_decoder": 1,
        "reference": blocks,
        "denoiser_guided": 3 * blocks + 2 * motions,
        "denoiser_single": 3 * blocks + 2 * motions,
    }
    found = {}
    for path in other_bundle.rglob("*.onnx"):
        kinds = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
        assert not {"Softmax", "InstanceNormalization"} & set(kinds), path.name
        found[path.stem] = kinds.count("Attention")
    assert found == expected


def test_every_weight_is_in_the_graph_under_its_own_name(other_bundle: Path, checkpoints: Checkpoints) -> None:
    for graph in graphs(checkpoints):
        stored = {t.name: t for t in onnx.load(other_bundle / graph.spec("fp32").path).graph.initializer}
        for name, parameter in module_of(graph, checkpoints, "fp32").state_dict().items():
            np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored[name]), parameter.numpy(), err_msg=name)


def test_the_guided_denoiser_adds_nothing_to_the_weight_file_of_the_single_one(other_bundle: Path) -> None:
    def places(name: str) -> dict[str, tuple]:
        model = onnx.load(other_bundle / "onnx" / "fp32" / f"{name}.onnx", load_external_data=False)
        entries = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}
        return {name: (e["location"], e["offset"], e["length"]) for name, e in entries.items() if e}

    guided, single = places("denoiser_guided"), places("denoiser_single")
    assert guided == single and len(guided) > 100


def test_the_manifest_describes_model_scheduler_and_origin(other_bundle: Path, checkpoints: Checkpoints) -> None:
    manifest = Bundle.open(other_bundle).manifest
    assert manifest.model == model_config(checkpoints, 104, 72, 8)
    assert manifest.scheduler.prediction_type == "v_prediction" and manifest.scheduler.rescale_zero_terminal_snr
    assert manifest.provenance["checkpoints"] == {name: file.sha256 for name, file in checkpoints.files.items()}
    assert manifest.random_weights and "random" in manifest.licence
    assert manifest.networks["unet"]["block_out_channels"] == [32, 64]
    guided = Bundle.open(other_bundle).graph("denoiser_guided", "fp32")
    assert {tensor.name: tensor.shape for tensor in guided.inputs}["key_01"][2] == "((h + 1)//2)*((w + 1)//2)"
    assert guided.outputs[0].shape == ("B", 2, "F", 4, "h", "w")


def test_official_weights_are_marked_as_research_only(
    checkpoints: Checkpoints, tmp_path: Path, only_small_graphs
) -> None:
    export_bundle(replace(checkpoints, random_weights=False), tmp_path / "b", precisions=["fp32"])
    manifest = Bundle.open(tmp_path / "b").manifest
    assert not manifest.random_weights and "research" in manifest.licence


def test_the_narrowest_network_passes_its_check_in_bf16(
    golden_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _export_only(monkeypatch, "reference")
    report = export_bundle(load_checkpoints(golden_dir / "model_ckpts"), tmp_path / "b", precisions=["bf16"])
    assert [graph.precision for graph in report.graphs] == ["bf16"]


def test_a_precision_is_added_without_touching_the_others(
    checkpoints: Checkpoints, tmp_path: Path, only_small_graphs: None, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "b.bundle"
    caplog.set_level(logging.INFO, "vexpress")
    export_bundle(checkpoints, target, precisions=["fp32"])
    before = {path.relative_to(target): path.read_bytes() for path in target.rglob("*.*") if path.suffix != ".json"}
    report = export_bundle(checkpoints, target, precisions=["fp32", "fp16", "bf16"])
    bundle = Bundle.open(target, verify=True)
    assert bundle.precisions == ("fp32", "fp16", "bf16")
    assert all((target / path).read_bytes() == content for path, content in before.items())
    assert [(graph.graph, graph.precision) for graph in report.graphs] == [
        ("audio_projection", "fp16"), ("audio_projection", "bf16"), ("kps_guider", "fp16"), ("kps_guider", "bf16")
    ]  # fmt: skip
    for graph in bundle.manifest.graphs:
        assert graph.parity["snr_db"] >= THRESHOLDS_DB[graph.precision]
        assert graph.parity["module_snr_db"] >= THRESHOLDS_DB[graph.precision]
        assert graph.parity["backend"].startswith("openvino" if graph.precision == "bf16" else "onnxruntime")
    assert all(result.passed for result in verify_bundle(bundle, "openvino"))
    lines = [record.message for record in caplog.records]
    assert len(lines) == 6 and all("dB" in line and "MiB" in line and " s," in line for line in lines)
    with pytest.raises(UserError, match="already holds fp16: nothing to add, or replace it with --force"):
        export_bundle(checkpoints, target, precisions=["fp16"])
    export_bundle(checkpoints, target, precisions=["fp16"], force=True)
    assert Bundle.open(target).precisions == ("fp16",)


@pytest.mark.parametrize("plain", [False, True])
def test_the_command_that_a_missing_precision_names_adds_it(
    checkpoints: Checkpoints, other_checkpoints: Path, tmp_path: Path, only_small_graphs: None, plain: bool
) -> None:
    target = tmp_path / "a bundle"
    sizes = {"image_width": 104, "image_height": 72, "context_frames": 8}
    export_bundle(checkpoints, target, precisions=["fp32"], plain=plain, **sizes)
    with pytest.raises(UserError) as lacks:
        Bundle.open(target).graph("kps_guider", "fp16")
    program, *command = shlex.split(str(lacks.value).split("`")[1].replace("DIR", str(other_checkpoints)))
    assert program == "vexpress" and cli.main(command) == 0
    assert Bundle.open(target).precisions == ("fp32", "fp16")


def test_a_bundle_with_other_settings_is_not_added_to(
    checkpoints: Checkpoints, tmp_path: Path, only_small_graphs: None
) -> None:
    target = tmp_path / "b.bundle"
    export_bundle(checkpoints, target, precisions=["fp32"])
    manifest = (target / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"other settings \(512x512, 24 frames per window\)"):
        export_bundle(checkpoints, target, precisions=["fp16"], context_frames=12)
    with pytest.raises(UserError, match="other checkpoints"):
        export_bundle(replace(checkpoints, files={}), target, precisions=["fp16"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("keep")
    with pytest.raises(UserError, match="not a bundle"):
        export_bundle(checkpoints, tmp_path / "mine", precisions=["fp32"], force=True)
    assert (target / "manifest.json").read_bytes() == manifest
    assert (tmp_path / "mine" / "precious.txt").read_text() == "keep"


def test_a_graph_that_differs_from_its_module_leaves_no_bundle(
    checkpoints: Checkpoints, tmp_path: Path, only_small_graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off_by_a_thousandth(graph: Graph, module, path: Path) -> None:
        outputs = module(*example_arguments(graph, "fp32", graph.checked))
        build_bundle.parity.write_vectors(path, graph.checked, {graph.outputs[0].name: outputs.numpy() * 1.001})

    monkeypatch.setattr(build_bundle.parity, "store_outputs", off_by_a_thousandth)
    with pytest.raises(UserError, match=r"audio_projection in fp32 differs from its torch module: tokens has 60\.0 dB"):
        export_bundle(checkpoints, tmp_path / "b.bundle", precisions=["fp32"])
    assert not list(tmp_path.iterdir())


def test_weights_that_overflow_in_half_precision_are_refused(
    checkpoints: Checkpoints, tmp_path: Path, only_small_graphs: None
) -> None:
    huge = {
        name: tensor * (3e5 if name == "conv_out.weight" else 1) for name, tensor in checkpoints.v_kps_guider.items()
    }
    with pytest.raises(UserError, match="kps_guider in fp16 overflows: feature"):
        export_bundle(replace(checkpoints, v_kps_guider=huge), tmp_path / "b.bundle", precisions=["fp16"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_that_are_no_numbers_are_not_blamed_on_the_precision(
    checkpoints: Checkpoints, tmp_path: Path, only_small_graphs: None, precision: str
) -> None:
    broken = {name: tensor * float("nan") for name, tensor in checkpoints.v_kps_guider.items()}
    with pytest.raises(UserError, match="feature of kps_guider is not finite even in fp32: its weights are"):
        export_bundle(replace(checkpoints, v_kps_guider=broken), tmp_path / "b.bundle", precisions=[precision])
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_is_refused_before_work_starts(
    other_checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--checkpoints", str(other_checkpoints), "--bundle", str(tmp_path / "b.bundle"), "--report", str(tmp_path)]
    assert cli.main(["export", *flags]) == 2
    assert "a folder of that name exists" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("width", "height", "frames", "words"),
    [
        (100, 64, 12, "--image_width 100: must be a positive multiple of 8"),
        (64, 0, 12, "--image_height 0"),
        (64, -8, 12, "--image_height -8"),
        (64, 64, 0, "--context_frames 0: the motion modules of this model take 1 to 32"),
        (64, 64, 33, "--context_frames 33"),
    ],
)
def test_sizes_the_model_cannot_have_are_refused(
    width: int, height: int, frames: int, words: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        export_bundle(checkpoints, tmp_path / "b", image_width=width, image_height=height, context_frames=frames)
    assert not list(tmp_path.iterdir())


def test_the_report_counts_every_byte_once(checkpoints: Checkpoints, tmp_path: Path, only_small_graphs: None) -> None:
    target = tmp_path / "b.bundle"
    report = export_bundle(checkpoints, target, precisions=["fp32"])
    manifest = json.loads((target / "manifest.json").read_text())
    assert report.bundle_bytes == sum((target / path).stat().st_size for path in manifest["files"])
    for graph in report.graphs:
        assert graph.graph_bytes == (target / f"onnx/fp32/{graph.graph}.onnx").stat().st_size
        assert graph.weights_bytes == (target / f"onnx/fp32/{graph.graph}.data").stat().st_size
        assert graph.seconds > 0 and graph.peak_memory_mib > 100
