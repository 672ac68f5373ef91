"""What TensorRT is given to read: nothing that points out of the bundle."""

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from vexpress_trt import cli
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.files import sha256_file
from vexpress_trt.engines.manifest import MANIFEST_NAME, FileRecord
from vexpress_trt.engines.trt.flavour import TENSORRT, TensorRt
from vexpress_trt.engines.trt.foresight import least_working_memory
from vexpress_trt.engines.trt.profile import ProfileSettings


@pytest.fixture
def leading_out(bundle: Bundle, tmp_path: Path) -> Bundle:
    """A bundle with a good manifest whose graph keeps its weight in a file beside the bundle."""
    spec = bundle.graph("vae_decoder", "fp32")
    path = bundle.path(spec.path)
    (tmp_path / "secret").write_bytes(bundle.path(spec.files[1]).read_bytes())
    model = onnx.load(path, load_external_data=False)
    entry = next(entry for entry in model.graph.initializer[0].external_data if entry.key == "location")
    entry.value = "../../../secret"
    path.write_bytes(model.SerializeToString())
    record = FileRecord(sha256_file(path), path.stat().st_size)
    manifest = replace(bundle.manifest, files=bundle.manifest.files | {spec.path: record})
    (bundle.root / MANIFEST_NAME).write_text(manifest.to_json())
    return Bundle.open(bundle.root)


def test_a_build_refuses_weights_outside_the_bundle_before_the_parser_reads_them(
    leading_out: Bundle, rtx: TensorRt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(rtx.module, "OnnxParser", lambda *given: pytest.fail("the parser was made"))
    assert cli.main(["build", str(leading_out.root), "--target", "sm89", "--precision", "fp32"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vexpress: error: ") and said.count("\n") == 1
    assert "keeps conv.weight in '../../../secret', which the manifest does not list beside it" in said
    assert not list(leading_out.root.glob("engines/*/*.plan"))


@pytest.mark.parametrize("version", ["10.12.0.36", "11.4"])
def test_weights_are_found_beside_the_file_whoever_reads_it(bundle: Bundle, rtx: TensorRt, version: str) -> None:
    spec = bundle.graph("vae_decoder", "fp32")
    path, profile = bundle.path(spec.path), ProfileSettings().of(spec, bundle.manifest.model)
    assert least_working_memory(TensorRt(TENSORRT, rtx.module, version), spec, path, profile).size > 0
