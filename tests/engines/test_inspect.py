"""What a bundle says about itself."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.inspect import _size, describe_bundle, format_description


def test_a_bundle_is_described_from_its_manifest_and_its_graphs(make_bundle: Callable, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "x.bundle", ["fp32", "bf16"])
    description = json.loads(json.dumps(describe_bundle(bundle)))
    assert description["precisions"] == ["fp32", "bf16"]
    assert description["model"]["context_frames"] == 12
    assert description["licence"] == "none"
    assert description["random_weights"] is True
    assert description["provenance"] == bundle.manifest.provenance
    assert description["bytes"] == sum(path.stat().st_size for path in (bundle.root / "onnx").rglob("*.*"))
    graph = description["graphs"][1]
    assert (graph["name"], graph["precision"], graph["opset"], graph["nodes"]) == ("vae_decoder", "bf16", 23, 3)
    assert graph["parameters"] == 16
    assert graph["common_ops"] == {"Cast": 1, "Conv": 1, "Add": 1}
    assert graph["inputs"][1] == {"name": "feature", "dtype": "bfloat16", "shape": ["N", 4, "h", "w"]}
    assert graph["parity"]["snr_db"] == 120.0


def test_weights_are_not_needed(bundle: Bundle) -> None:
    (bundle.root / "onnx/fp32/vae_decoder.data").unlink()
    assert describe_bundle(bundle)["graphs"][0]["parameters"] == 16


def test_shapes_and_indices_are_no_parameters(bundle: Bundle) -> None:
    path = bundle.root / "onnx/fp32/vae_decoder.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer.append(onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [4], [0, 0, 1, 1]))
    path.write_bytes(model.SerializeToString())
    assert describe_bundle(bundle)["graphs"][0]["parameters"] == 16


def test_the_text_shows_it_all(bundle: Bundle) -> None:
    lines = format_description(describe_bundle(bundle)).splitlines()
    assert lines[0].startswith(f"{bundle.root}: ")
    assert lines[0].endswith("random weights, by tests 1.0")
    for line in [
        "licence: none",
        "made for 64 x 64 pixels, windows of 12 frames (up to 32)",
        "vae_decoder fp32: 16 parameters, 3 nodes (opset 23): Cast 1, Conv 1, Add 1",
        "  in  latents: float32 [N, 4, h, w]",
        "  out image: float32 [N, 4, h, w]",
        "  120 dB to the torch module on onnxruntime, largest error 1e-06",
        "  onnx/fp32/vae_decoder.data       64 B",
        "  a.bin  sha256 1212121212121212",
    ]:
        assert line in lines


def test_what_a_bundle_says_cannot_command_the_terminal(bundle: Bundle) -> None:
    text = format_description(describe_bundle(bundle) | {"licence": "\x1b]0;mine\x07 \ud800 libre à tous"})
    assert r"licence: \x1b]0;mine\x07 \ud800 libre à tous" in text.splitlines()


def test_keys_and_values_take_one_line(bundle: Bundle) -> None:
    description = describe_bundle(bundle)
    description["graphs"][0]["inputs"] += [
        {"name": f"{kind}_{index:02d}", "dtype": "float32", "shape": [1, 8, "h*w", 4]}
        for index in range(3)
        for kind in ("key", "value")
    ]
    text = format_description(description)
    assert "  in  key_00 ... value_02: 6 tensors, first float32 [1, 8, h*w, 4]" in text
    assert "key_01" not in text


def test_an_unreadable_graph_is_named(bundle: Bundle) -> None:
    (bundle.root / "onnx/fp32/vae_decoder.onnx").write_bytes(b"\x08\x0a no")
    with pytest.raises(UserError, match="vae_decoder.onnx is not a readable ONNX model"):
        describe_bundle(bundle)


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (1000, "1.0 kB"), (2_600_000, "2.6 MB"), (2_700_000_000, "2.7 GB")]
)
def test_sizes_are_in_powers_of_ten(count: int, text: str) -> None:
    assert _size(count) == text
