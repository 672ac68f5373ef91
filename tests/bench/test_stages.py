"""`vexpress bench` measures every stage once and says what it cost, as a table and as JSON."""

import json
from pathlib import Path

from vexpress_trt import cli


def test_table_and_json(other_bundle: Path, tmp_path: Path, capsys) -> None:
    report_path = tmp_path / "bench.json"
    arguments = ["--backend", "onnxruntime", "--repeats", "2", "--num_inference_steps", "4", "--json", str(report_path)]
    assert cli.main(["bench", str(other_bundle), *arguments]) == 0
    table = capsys.readouterr().out
    report = json.loads(report_path.read_text())
    stages = {stage["stage"]: stage for stage in report["stages"]}
    assert list(stages) == [
        "vae_encoder", "reference", "audio_encoder", "audio_projection", "kps_guider", "denoiser_guided",
        "vae_decoder", "median_filter",
    ]  # fmt: skip
    for name, stage in stages.items():
        assert f"| {name} |" in table
        assert 0 < stage["min_seconds"] <= stage["median_seconds"] <= stage["max_seconds"]
        assert stage["peak_memory_mib"] > 10
    assert (report["image_width"], report["image_height"], report["context_frames"]) == (104, 72, 8)
    assert report["seconds_per_output_frame"] > 4 * stages["denoiser_guided"]["median_seconds"] / 8
    assert report["machine"]["cores"] >= 1
