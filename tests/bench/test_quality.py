"""`vexpress bench quality` on a random model of the right size: every condition is run, and really withholds."""

import json
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from vexpress_trt import cli
from vexpress_trt.bench import quality, quality_table
from vexpress_trt.bench.quality_ablation import AUDIO, KEYPOINTS, MOTION, PORTRAIT, Withheld, without
from vexpress_trt.bench.quality_score import Score
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.engine import load_engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import is_reference_tensor
from vexpress_trt.engines.verify import read_vectors, vector_inputs, vector_path
from vexpress_trt.models.box.held_out import HeldOutClip
from vexpress_trt.models.box.record import write_flac
from vexpress_trt.runtime.audio_input import decode_audio
from vexpress_trt.runtime.presets import PRESETS, Preset
from vexpress_trt.runtime.request import GenerationRequest

FLAT = (
    "mouth_correlation mouth_correlation_no_audio mouth_correlation_other_audio best_lag_frames psnr_db psnr_copy_db "
    "mouth_psnr_db mouth_psnr_copy_db vae_psnr_db keypoint_error flicker_ratio clips"
).split()
QUICK = ["--num_inference_steps", "1", "--backend", "onnxruntime", "--guidance_scale", "1"]


class _ShortClip(HeldOutClip):
    """The first 16 frames of a held-out clip."""

    @property
    def speech(self) -> Path:
        path = Path(tempfile.gettempdir()) / f"{self.number}.flac"
        if not path.exists():
            write_flac(path, decode_audio(super().speech).samples[: 16 * 640])
        return path


@pytest.fixture
def short_clips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(quality, "held_out_clips", lambda count: [_ShortClip(number) for number in range(count)])


def _outputs(bundle: Bundle, graph: str, **given: np.ndarray) -> dict[str, np.ndarray]:
    spec = bundle.graph(graph, "fp32")
    inputs = vector_inputs(spec, read_vectors(bundle.path(vector_path(graph)))[0])
    with load_engine(bundle, graph, backend="onnxruntime", precision="fp32") as engine:
        return {name: array.copy() for name, array in engine.run(**{**inputs, **given}).items()}


@pytest.mark.parametrize(
    ("withheld", "graph"), [(AUDIO, "audio_projection"), (KEYPOINTS, "kps_guider"), (PORTRAIT, "reference")]
)
def test_what_hands_an_input_on_gives_nothing(
    withheld: Withheld, graph: str, golden_bundle: Path, tmp_path: Path
) -> None:
    original = Bundle.open(golden_bundle)
    copy = Bundle.open(without(original, withheld, tmp_path / "copy.bundle"), verify=True)
    assert any(array.any() for array in _outputs(original, graph).values())
    assert not any(array.any() for array in _outputs(copy, graph).values())
    Bundle.open(golden_bundle, verify=True)  # the original is as it was


def test_without_motion_modules_a_frame_does_not_see_its_neighbours(golden_bundle: Path, tmp_path: Path) -> None:
    original = Bundle.open(golden_bundle)
    copy = Bundle.open(without(original, MOTION, tmp_path / "copy.bundle"))
    spec = original.graph("denoiser_single", "fp32")
    inputs = vector_inputs(spec, read_vectors(original.path(vector_path("denoiser_single")))[0])
    changed = {name: array.copy() for name, array in inputs.items()}
    changed["latents"][:, 0] += 1
    for bundle, sees in ((original, True), (copy, False)):
        one, other = (_outputs(bundle, "denoiser_single", **given) for given in (inputs, changed))
        difference = np.abs(next(iter(one.values())) - next(iter(other.values())))[0, 0, 1:].max()
        assert (difference > 1e-4) == sees
    assert any(is_reference_tensor(tensor.name) for tensor in spec.inputs)


def test_weights_that_are_not_there_are_not_withheld_silently(golden_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weights named nothing"):
        without(Bundle.open(golden_bundle), Withheld(("reference",), "nothing"), tmp_path / "copy.bundle")


def test_report_table_and_plot(short_clips: None, golden_bundle: Path, tmp_path: Path, capsys) -> None:
    files = ["--json", str(tmp_path / "quality.json"), "--plot", str(tmp_path / "quality.png")]
    assert cli.main(["bench", "quality", str(golden_bundle), "--clips", "2", *QUICK, *files]) == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "quality.json").read_text())
    assert all(isinstance(report[name], int | float) for name in FLAT)
    assert (report["kind"], report["clips"], report["frames_per_clip"]) == ("quality", 2, 16)
    assert report["settings"]["num_inference_steps"] == 1 and report["settings"]["audio_attention_weight"] == 3.0
    assert len(report["conditions"]) == 10
    for name, values in report["conditions"].items():
        assert f"| {name} |" in shown
        assert set(values) == {spec.name for spec in fields(Score)}
    assert report["conditions"]["median filter alone"]["psnr_db"] > 30
    assert report["conditions"]["the portrait, repeated"]["flicker_ratio"] == 0
    assert report["psnr_db"] != report["psnr_wrong_portrait_db"]
    assert (tmp_path / "quality.png").stat().st_size > 10_000
    assert str(golden_bundle.parent) not in (tmp_path / "quality.json").read_text()


def test_the_table_is_made_in_pieces(
    short_clips: None, golden_bundle: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    rows = {
        "exact": {"preset": "exact"},
        "2 steps": {"num_inference_steps": 2},
        "4 windows a call": {"window_batch": 4},
    }
    monkeypatch.setattr(quality_table, "jobs", lambda: rows)
    path = tmp_path / "table.json"
    command = ["bench", "quality", str(golden_bundle), "--table", "--clips", "1", *QUICK, "--json", str(path)]
    assert cli.main([*command, "--only", "2 steps"]) == 0
    first = json.loads(path.read_text())
    assert [row["name"] for row in first["rows"]] == ["exact", "2 steps"]
    assert first["missing"] == 1
    assert cli.main([*command, "--plot", str(tmp_path / "table.png")]) == 0
    second = json.loads(path.read_text())
    assert [row["name"] for row in second["rows"]] == list(rows)
    assert second["rows"][:2] == first["rows"] and second["missing"] == 0
    by_name = {row["name"]: row for row in second["rows"]}
    assert by_name["exact"]["psnr_to_exact_db"] is None
    assert by_name["2 steps"]["psnr_to_exact_db"] < 60
    assert by_name["2 steps"]["passes_per_frame"] == 2 * by_name["exact"]["passes_per_frame"]
    assert "| 4 windows a call |" in capsys.readouterr().out
    assert (tmp_path / "table.png").stat().st_size > 10_000
    assert cli.main([*command, "--seed", "7"]) == 2
    assert "a table with other flags" in capsys.readouterr().err


def test_the_tables_rows_cover_what_is_traded() -> None:
    changed = quality_table.jobs()
    assert next(iter(changed)) == "exact"
    for name in ("num_inference_steps", "solver", "guidance_scale", "guidance_interval", "context_frames"):
        assert any(name in change for change in changed.values())
    for name in ("reference_attention_weight", "audio_attention_weight", "window_batch", "backend", "preset"):
        assert any(name in change for change in changed.values())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--clips", "1"], "--clips 1: must be from 2 to 24"),
        (["--clips", "25", "--table", "--json", "t.json"], "--clips 25"),
        (["--clips", "0"], "--clips 0: must be from 2 to 24"),
        (["--clips", "0", "--table", "--json", "t.json"], "--clips 0: must be from 1 to 24"),
        (["--table"], "--json is missing"),
        (["--only", "exact"], "give --table as well"),
        (["--minutes", "1"], "give --table as well"),
        (["--plot", "quality.jpg"], "let the name end in .png"),
        (["--table", "--json", "t.json", "--only", "nothing"], "--only nothing: choose from exact"),
    ],
)
def test_settings_that_cannot_be_are_refused(flags: list[str], sentence: str, golden_bundle: Path, capsys) -> None:
    assert cli.main(["bench", "quality", str(golden_bundle), *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    golden_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(quality, "measure_quality", lambda settings: pytest.fail("measured"))
    assert cli.main(["bench", "quality", str(golden_bundle), "--plot", str(tmp_path / "quality.png")]) == 2
    assert "plots need matplotlib" in capsys.readouterr().err


def test_rows_of_presets_are_the_presets_whatever_is_given() -> None:
    for name, preset in PRESETS.items():
        changed = quality_table.jobs()[name]
        given = {"num_inference_steps": 1, "solver": "dpmpp_2m", "guidance_interval": "0,0.1", "context_overlap": 0}
        request = GenerationRequest(**{**given, "guidance_scale": 2.0, **changed})
        assert replace(preset, guidance_scale=2.0) == Preset(
            **{spec.name: getattr(request, spec.name) for spec in fields(Preset)}
        )


def test_a_model_of_another_size_is_refused(other_bundle: Path) -> None:
    from vexpress_trt.bench.quality import open_small

    with pytest.raises(UserError, match="104x72, the held-out clips have 128x128"):
        open_small(other_bundle)
