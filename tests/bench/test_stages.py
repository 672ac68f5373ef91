"""`vexpress bench stages` measures every stage once and says what it cost, as a table and as JSON."""

import json
from functools import partial
from pathlib import Path

import pytest

from vexpress_trt import cli
from vexpress_trt.bench import stages
from vexpress_trt.bench.roofline import Workload, measure_ceilings

TINY = Workload(rows=8, columns=8, frames=1, channels=4, side=6)


def test_table_and_json(other_bundle: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "measure_ceilings", partial(measure_ceilings, workload=TINY, repeats=1))
    report_path = tmp_path / "bench.json"
    arguments = ["--backend", "onnxruntime", "--repeats", "2", "--num_inference_steps", "4", "--startup_repeats", "1"]
    assert cli.main(["bench", "stages", str(other_bundle), *arguments, "--json", str(report_path)]) == 0
    table = capsys.readouterr().out
    report = json.loads(report_path.read_text())
    found = {stage["stage"]: stage for stage in report["stages"]}
    graphs = [
        "vae_encoder", "reference", "audio_encoder", "audio_projection", "kps_guider", "denoiser_guided", "vae_decoder"
    ]  # fmt: skip
    assert list(found) == [*graphs, "median_filter"]
    for name, stage in found.items():
        assert f"| {name} |" in table
        assert 0 < stage["seconds"]["min"] <= stage["seconds"]["median"] <= stage["seconds"]["max"]
        assert stage["peak_memory_mib"] > 10
    assert report["kind"] == "stages"
    assert (report["image_width"], report["image_height"], report["context_frames"]) == (104, 72, 8)
    assert report["machine"]["cores"] >= 1
    assert [row["stage"] for row in report["reached"]] == graphs
    assert all(row["gflop"] > 0 and row["share"] > 0 for row in report["reached"])
    assert "Ceilings of onnxruntime here" in table

    call = found["denoiser_guided"]["seconds"]["median"]
    assert report["seconds_per_output_frame"] > 4 * call / 4  # 4 steps; a window of 8 brings 4 new frames
    assert report["times_real_time"] == pytest.approx(report["frames_per_second"] / 25)
    assert report["calls_before_first_frame"] == 4 + 1 * 4 * 3 / 2
    assert report["time_to_first_frame"] > report["startup"]["seconds"]["median"] + 9 * call
    parts = report["startup"]["parts"]
    assert {"interpreter", "imports", "inputs", "load engines", "portrait", "denoise"} <= set(parts)
    assert sum(parts.values()) == pytest.approx(report["startup"]["seconds"]["median"], abs=0.01)
    assert str(other_bundle.parent) not in report_path.read_text()


def test_start_and_ceilings_can_be_left_out(other_bundle: Path, capsys) -> None:
    flags = ["--backend", "onnxruntime", "--repeats", "1", "--startup_repeats", "0", "--no_roofline"]
    assert cli.main(["bench", "stages", str(other_bundle), *flags, "--guidance_scale", "1"]) == 0
    table = capsys.readouterr().out
    assert "| denoiser_single |" in table
    assert "Start of a process" not in table and "Ceilings" not in table


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--context_overlap", "8"], "must be smaller than 8"),
        (["--repeats", "0"], "--repeats 0: must be 1 or more"),
        (["--num_inference_steps", "-5"], "must be from 1 to"),
        (["--image_width", "100"], "must be a multiple of 8"),
        (["--guidance_scale", "nan"], "must be from 0 to"),
    ],
)
def test_settings_without_a_meaning_are_refused(other_bundle: Path, capsys, flags: list[str], sentence: str) -> None:
    assert cli.main(["bench", "stages", str(other_bundle), *flags]) == 2
    assert sentence in capsys.readouterr().err
