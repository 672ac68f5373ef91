"""`export`, `verify` and `inspect` on a real bundle."""

import json
import shutil
from pathlib import Path

import pytest

from vexpress_trt import cli
from vexpress_trt.engines.bundle import Bundle


def test_verify_repeats_the_exporters_check(other_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", str(other_bundle), "--backend", "onnxruntime", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert len(results) == 8
    assert all(result["passed"] and result["snr_db"] > 100 for result in results)
    assert cli.main(["verify", str(other_bundle), "--backend", "onnxruntime"]) == 0
    assert "denoiser_guided" in capsys.readouterr().out


def test_verify_tells_how_far_bf16_is_from_the_exported_networks(other_bundle: Path, capsys) -> None:
    assert cli.main(["verify", str(other_bundle), "--backend", "openvino", "--dtype", "bf16", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert all(result["passed"] and 33 <= result["snr_db"] < 80 for result in results)


def test_verify_fails_on_a_graph_that_computes_something_else(other_bundle: Path, tmp_path: Path, capsys) -> None:
    import numpy as np

    copy = tmp_path / "copy.bundle"
    shutil.copytree(other_bundle, copy)
    vectors = copy / "parity" / "kps_guider.npz"
    content = dict(np.load(vectors))
    content["output.feature"] = content["output.feature"] + np.float32(0.1)
    np.savez(vectors, **content)
    manifest = json.loads((copy / "manifest.json").read_text())
    from vexpress_trt.engines.files import sha256_file

    manifest["files"]["parity/kps_guider.npz"] = {"sha256": sha256_file(vectors), "size": vectors.stat().st_size}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert cli.main(["verify", str(copy), "--backend", "onnxruntime"]) == 1
    assert "kps_guider" in capsys.readouterr().out


def test_inspect_names_graphs_bindings_and_licence(other_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(other_bundle)]) == 0
    text = capsys.readouterr().out
    for word in ("denoiser_guided", "vae_decoder", "waveform", "random weights", "fp32"):
        assert word in text
    assert cli.main(["inspect", str(other_bundle), "--json"]) == 0
    json.loads(capsys.readouterr().out)


def test_both_denoisers_share_their_weights(other_bundle: Path) -> None:
    bundle = Bundle.open(other_bundle)
    guided, single = (bundle.graph(name, "fp32") for name in ("denoiser_guided", "denoiser_single"))
    assert "onnx/fp32/denoiser.data" in set(guided.files) & set(single.files)


def test_the_manifest_says_where_the_weights_came_from(other_bundle: Path) -> None:
    manifest = Bundle.open(other_bundle).manifest
    assert manifest.random_weights
    assert "v-express/denoising_unet.bin" in manifest.provenance["checkpoints"]
    assert all(graph.parity["passed"] for graph in manifest.graphs if "passed" in (graph.parity or {}))
    assert all(graph.parity["snr_db"] > 100 for graph in manifest.graphs)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--checkpoints", "none"], "none"),
        ([], "--checkpoints"),
        (["--checkpoints", "GOLDEN", "--image_width", "100"], "--image_width 100"),
        (["--checkpoints", "GOLDEN", "--context_frames", "33"], "--context_frames 33"),
    ],
)
def test_export_refuses_with_a_sentence(
    flags: list[str], words: str, golden_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(golden_dir / "model_ckpts") if flag == "GOLDEN" else flag for flag in flags]
    assert cli.main(["export", "--bundle", str(tmp_path / "new.bundle"), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "new.bundle").exists()


def test_export_does_not_replace_a_bundle_of_other_weights(
    other_bundle: Path, golden_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (other_bundle / "manifest.json").read_bytes()
    arguments = ["--checkpoints", str(golden_dir / "model_ckpts"), "--bundle", str(other_bundle)]
    assert cli.main(["export", *arguments]) == 2
    assert "--force" in capsys.readouterr().err
    assert (other_bundle / "manifest.json").read_bytes() == before
