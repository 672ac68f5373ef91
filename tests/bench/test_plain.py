"""`vexpress bench plain` times a denoiser with and without the exact savings in turns."""

import json
import shutil
from pathlib import Path

import pytest

from vexpress_trt import cli


@pytest.fixture(scope="module")
def stand_in(other_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that says it is plain. It holds the exact graphs: exporting the others takes a minute, and what they
    compute is tested where they are made."""
    folder = tmp_path_factory.mktemp("plain") / "plain.bundle"
    shutil.copytree(other_bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["provenance"]["form"] = "plain"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("guidance", [3.5, 1.0])
def test_table_and_json(other_bundle: Path, stand_in: Path, tmp_path: Path, capsys, guidance: float) -> None:
    report_path = tmp_path / "plain.json"
    flags = ["--backend", "onnxruntime", "--repeats", "2", "--context_frames", "3", "--image_width", "64"]
    flags += ["--image_height", "64", "--guidance_scale", str(guidance), "--json", str(report_path)]
    assert cli.main(["bench", "plain", str(other_bundle), str(stand_in), *flags]) == 0
    table = capsys.readouterr().out
    report = json.loads(report_path.read_text())
    assert (report["image_width"], report["image_height"], report["context_frames"]) == (64, 64, 3)
    ratio = report["plain"]["seconds"]["median"] / report["exact"]["seconds"]["median"]
    assert report["speedup"]["median"] == pytest.approx(ratio)
    assert report["exact"]["gflop"] == report["plain"]["gflop"] > 0  # of a stand-in
    assert report["likeness"] == {"snr_db": None, "largest_difference": 0.0}
    assert "| exact savings |" in table and "| identical |" in table


def test_sizes_that_no_clip_has_are_refused(other_bundle: Path, stand_in: Path, capsys) -> None:
    assert cli.main(["bench", "plain", str(other_bundle), str(stand_in), "--image_width", "100"]) == 2
    assert "--image_width 100: must be a multiple of 8" in capsys.readouterr().err


def test_bundles_that_are_no_pair_are_refused(other_bundle: Path, stand_in: Path, capsys) -> None:
    for pair in ((other_bundle, other_bundle), (stand_in, stand_in), (stand_in, other_bundle)):
        assert cli.main(["bench", "plain", *map(str, pair)]) == 2
        assert "are no pair" in capsys.readouterr().err
