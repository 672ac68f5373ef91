"""Results become pictures."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from vexpress_trt import cli

HEAD = {
    "bundle": "x.bundle",
    "machine": {"cores": 2, "cpu": "a processor"},
    "image_width": 64,
    "image_height": 64,
    "num_inference_steps": 4,
}


def _contender(backend: str, seconds: float, psnr: float | None, *, reference: bool = False) -> dict:
    likeness = None if reference else {"psnr_db": psnr, "largest_difference": 1}
    return {"backend": backend, "dtype": "fp32", "seconds_per_frame": seconds, "against_baseline": likeness}


def _stage(name: str, seconds: float, frames: int) -> dict:
    return {"stage": name, "frames": frames, "seconds": {"median": seconds, "min": seconds, "max": seconds}}


COMPARE = HEAD | {
    "kind": "compare",
    "contenders": [
        _contender("torch eager", 2.0, None, reference=True),
        _contender("openvino", 0.5, 41.0),
        _contender("onnxruntime", 1.0, None),
    ],
}
STAGES = HEAD | {
    "kind": "stages",
    "backend": "openvino",
    "dtype": "bf16",
    "context_frames": 8,
    "context_overlap": 4,
    "stages": [
        _stage("reference", 1.0, 0),
        _stage("denoiser_guided", 2.0, 8),
        _stage("vae_decoder", 0.1, 1),
    ],
}


def _written(folder: Path, **results: dict) -> list[str]:
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps(result))
    return [str(folder / f"{name}.json") for name in results]


@pytest.mark.parametrize(
    ("results", "panels"),
    [({"a": COMPARE}, 1), ({"a": STAGES, "b": STAGES}, 1), ({"a": COMPARE, "b": STAGES, "c": COMPARE}, 2)],
)
def test_each_kind_of_result_has_a_panel(tmp_path: Path, capsys, results: dict, panels: int) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "new" / "plot.png"
    assert cli.main(["bench", "plot", *_written(tmp_path, **results), "--output", str(output)]) == 0
    assert f"wrote {output}" in capsys.readouterr().out
    with Image.open(output) as picture:
        assert picture.format == "PNG"
        assert picture.size == (1050, 675 * panels)
        assert len(set(picture.convert("L").tobytes())) > 20


def test_a_stage_counts_for_one_output_frame() -> None:
    from vexpress_trt.bench.plots import _seconds_per_output_frame

    # 4 steps of 2 s for windows that bring 4 new frames; what runs once per clip is left out
    assert _seconds_per_output_frame(STAGES) == {"denoiser_guided": 2.0, "vae_decoder": 0.1}


def test_what_cannot_be_drawn_is_a_sentence(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(files: list[str], output: str = "x.png") -> str:
        assert cli.main(["bench", "plot", *files, "--output", str(tmp_path / output)]) == 2
        return capsys.readouterr().err

    assert "plots exist of compare and stages" in refusal(_written(tmp_path, a=HEAD | {"kind": "sweep"}))
    assert "let the name end in .png" in refusal(_written(tmp_path, a=COMPARE), "x.jpg")
    assert "none.json is not a readable result (no such file or directory): make one" in refusal(
        [str(tmp_path / "none.json")]
    )
    other = {"kind": "compare", "contenders": []}
    if find_spec("matplotlib"):
        assert "is none of this version" in refusal(_written(tmp_path, a=other))
    assert "is no result of this version" in refusal(_written(tmp_path, a={"kind": ["compare"]}))
    (tmp_path / "folder.png").mkdir()
    assert "a folder of that name exists" in refusal(_written(tmp_path, a=COMPARE), "folder.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "plots need matplotlib: install it with" in refusal(_written(tmp_path, a=COMPARE))
    assert not (tmp_path / "x.png").exists()


def test_results_of_several_bundles_are_told_apart() -> None:
    from vexpress_trt.bench import plots

    other = COMPARE | {"bundle": "y.bundle"}
    figure = plots._figure(1)
    (axes,) = figure.axes
    plots._pareto(axes, [COMPARE, other])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(set(labels)) == 6 and labels[1] == "x.bundle, 64x64: openvino fp32, 4 steps"
    assert "bundle" not in axes.get_title()
    assert axes.get_title() == "2 cores of a processor"
    plots._pareto(axes, [COMPARE])
    assert axes.get_title() == "x.bundle, 64x64, 2 cores of a processor"


def test_results_of_several_machines_are_told_apart() -> None:
    from vexpress_trt.bench import plots

    other = STAGES | {"machine": {"cores": 8, "cpu": "another"}, "num_inference_steps": 8}
    (axes,) = plots._figure(1).axes
    plots._stage_bars(axes, [STAGES, other])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["2 cores of a processor: openvino bf16, 4 steps", "8 cores of another: openvino bf16, 8 steps"]
    assert axes.get_title() == "x.bundle, 64x64"
