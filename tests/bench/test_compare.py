"""`vexpress bench compare`: the baseline and the engines make the same clip, in processes of their own."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from vexpress_trt import cli
from vexpress_trt.bench import compare
from vexpress_trt.bench.compare import CompareSettings
from vexpress_trt.bench.fresh import Finished
from vexpress_trt.bench.job import Job, JobResult, run_baseline, run_generate
from vexpress_trt.bench.likeness import PictureLikeness, compare_frames
from vexpress_trt.bench.report import Spread
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.runtime.request import GenerationRequest

SMALL = ["--num_inference_steps", "2", "--fps", "25", "--threads", "1", "--backend", "onnxruntime"]


def _job(job_files, bundle: Path, folder: Path, name: str, checkpoints: Path | None = None, **settings) -> Job:
    request = GenerationRequest(
        job_files.portrait,
        job_files.speech,
        output_path=folder / f"{name}.mp4",
        kps_path=job_files.track,
        bundle=bundle,
        compat="upstream",
        num_inference_steps=2,
        fps=25.0,
        backend="onnxruntime",
        threads=1,
        **settings,
    )
    return Job(request, folder / f"{name}.rgb", checkpoints)


@pytest.mark.parametrize("guidance", [3.5, 1.0])
def test_the_baseline_makes_the_frames_that_generate_makes(
    job_files, other_bundle: Path, other_checkpoints: Path, tmp_path: Path, guidance: float
) -> None:
    ours = _job(job_files, other_bundle, tmp_path, "ours", guidance_scale=guidance)
    original = _job(job_files, other_bundle, tmp_path, "original", other_checkpoints, guidance_scale=guidance)
    one, other = run_generate(ours), run_baseline(original)
    assert (one.frames, one.width, one.height, one.windows) == (12, 104, 72, 2)
    assert (other.frames, other.width, other.height, other.windows) == (12, 104, 72, 2)
    likeness = compare_frames(ours.frames_path, original.frames_path)
    assert likeness.largest_difference <= 1  # what is truncated to a byte may fall on either side
    assert likeness.psnr_db is None or likeness.psnr_db > 65
    assert np.fromfile(ours.frames_path, np.uint8).std() > 5
    assert all(path.stat().st_size > 1000 for path in (ours.request.output_path, original.request.output_path))


def test_a_job_is_read_as_it_was_saved(job_files, tmp_path: Path) -> None:
    for checkpoints in (None, tmp_path / "ckpts"):
        job = _job(job_files, tmp_path / "b", tmp_path, "x", checkpoints, seed=7)
        assert Job.load(job.save(tmp_path / "job.json")) == job


def test_table_and_json(
    job_files, other_bundle: Path, other_checkpoints: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    report_path = tmp_path / "new" / "compare.json"
    flags = [*job_files.flags, *SMALL, "--repeats", "1", "--seconds", "0.4", "--json", str(report_path)]
    assert cli.main(["bench", "compare", str(other_bundle), "--checkpoints", str(other_checkpoints), *flags]) == 0
    printed = capsys.readouterr()
    report = json.loads(report_path.read_text())
    baseline, default = report["contenders"]
    assert (baseline["name"], baseline["backend"]) == ("baseline", "torch eager")
    assert (default["name"], default["backend"], default["dtype"]) == ("default", "onnxruntime", "fp32")
    assert report["frames"] == 8 and report["windows"] == 1  # 0.4 s are 10 frames, in which one window fits
    for row in report["contenders"]:
        assert row["seconds_per_frame"] == pytest.approx(row["round_seconds"][0] / 8)
        assert row["frames_per_second"] == pytest.approx(8 / row["round_seconds"][0])
        assert row["peak_memory_mib"] > 100 and "denoise" in row["stage_seconds"]
        assert f"| {row['name']}: {row['backend']} {row['dtype']} |" in printed.out
    assert default["speedup"]["median"] == pytest.approx(baseline["round_seconds"][0] / default["round_seconds"][0])
    assert default["against_baseline"]["largest_difference"] <= 1 and default["against_fp32"] is None
    assert "round 1 of 1: baseline" in printed.err
    assert str(tmp_path) not in report_path.read_text() and str(job_files.speech.parent) not in report_path.read_text()


def test_ratios_are_of_medians_with_those_within_a_round(tmp_path: Path) -> None:
    result = asdict(JobResult("openvino", "bf16", 10, 8, 8, 25.0, 1, {"denoise": 1.0}, 1.0, 1.0, 100.0))
    runs = {
        name: [Finished(seconds, result) for seconds in times]
        for name, times in (("baseline", (10.0, 30.0, 20.0)), ("default", (5.0, 5.0, 8.0)))
    }
    pictures = {name: tmp_path / name for name in runs}
    for path in pictures.values():
        path.write_bytes(b"abc")
    row = compare._contender("default", runs, pictures)
    assert row.speedup == Spread(20 / 5, 10 / 5, 30 / 5)
    assert (row.seconds_per_frame, row.frames_per_second) == (0.5, 2.0)
    assert row.against_baseline == PictureLikeness(None, 0)


def test_each_round_begins_with_another_contender() -> None:
    orders = [compare._rotated(["a", "b", "c"], number) for number in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_a_default_other_than_fp32_has_fp32_beside_it(job_files, other_bundle: Path, tmp_path: Path) -> None:
    def jobs(**settings) -> dict[str, Job]:
        request = GenerationRequest(job_files.portrait, job_files.speech, bundle=other_bundle, **settings)
        return compare._jobs(CompareSettings(request, tmp_path), Bundle.open(other_bundle), tmp_path)

    three = jobs(backend="openvino", dtype="bf16")
    assert [(name, job.request.dtype) for name, job in three.items()] == [
        ("baseline", "bf16"),  # it takes no notice
        ("default", "bf16"),
        ("fp32", "fp32"),
    ]
    assert [job.checkpoints for job in three.values()] == [tmp_path, None, None]
    assert all(job.request.upstream and job.request.portrait_cache == "off" for job in three.values())
    assert list(jobs(backend="onnxruntime")) == ["baseline", "default"]


def test_what_is_missing_is_said_before_anything_runs(
    job_files, other_bundle: Path, other_checkpoints: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*, checkpoints: Path = other_checkpoints, flags: list[str] = job_files.flags) -> str:
        arguments = ["bench", "compare", str(other_bundle), "--checkpoints", str(checkpoints), *flags]
        assert cli.main(arguments) == 2
        return capsys.readouterr().err

    assert "--audio_path is missing" in refusal(flags=job_files.flags[:2])
    assert "none.wav does not exist" in refusal(flags=[*job_files.flags, "--audio_path", "none.wav"])
    assert "check --checkpoints" in refusal(checkpoints=tmp_path)
    (tmp_path / "v-express").mkdir()
    (tmp_path / "v-express" / "v_kps_guider.bin").write_bytes(b"another")
    assert "was exported from other checkpoints" in refusal(checkpoints=tmp_path)
    assert "--repeats 0" in refusal(flags=[*job_files.flags, "--repeats", "0"])
    monkeypatch.setattr(compare, "find_spec", lambda name: None if name == "torch" else True)
    assert "the baseline needs torch: install" in refusal()
