"""`vexpress batch` as a user meets it, with the model in the box."""

import json
import sys
from pathlib import Path

import pytest

from vexpress_trt import cli
from vexpress_trt.bench.speech import write_speech
from vexpress_trt.models.box.box import is_shipped, shipped_bundle
from vexpress_trt.runtime import GenerationRequest, write_video

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """Two clips of 10 frames and one of a portrait that is not there."""
    if not is_shipped():
        pytest.skip("this copy of the package carries no model")
    write_speech(DEMO / "speech.flac", 0.4, tmp_path / "speech.wav")
    job = {"reference_image_path": str(DEMO / "portrait.jpg"), "audio_path": "speech.wav"}
    lines = [
        {**job, "output_path": "one.mp4"},
        {**job, "output_path": "gone.mp4", "reference_image_path": "gone.png"},
        {**job, "output_path": "two.mp4", "seed": 7},
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "jobs.jsonl"


def test_clips_are_those_of_generate_and_are_made_once(
    jobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["batch", str(jobs), "--num_inference_steps", "2", "--fps", "25", "--threads", "1", "--json"]
    assert cli.main(command) == 1
    output = capsys.readouterr()
    report = json.loads(output.out)
    assert (report["done"], report["frames"], report["retried"]) == (2, 20, 0)
    (failure,) = report["failures"]
    assert (failure["line"], failure["attempts"]) == (2, 1)
    assert "gone.png" in failure["cause"]
    assert "jobs  3/3" in output.err

    request = GenerationRequest(
        DEMO / "portrait.jpg",
        tmp_path / "speech.wav",
        tmp_path / "alone.mp4",
        bundle=shipped_bundle(),
        num_inference_steps=2,
        fps=25.0,
        threads=1,
        seed=7,
    )
    write_video(request)
    assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "alone.mp4").read_bytes()

    assert cli.main(command) == 1
    assert json.loads(capsys.readouterr().out)["skipped"] == 2
    records = [json.loads(line) for line in (tmp_path / "jobs.results.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records] == ["done", "failed", "done", "failed"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--workers", "0"], "--workers 0: must be at least 1"),
        (["--retries", "-1"], "--retries -1: must be at least 0"),
        (["--cpus_per_actor", "2"], "give its address with --ray"),
        (["--fps", "0"], "line 1: --fps 0.0: must be from 1 to 120"),
        (["--results", "JOBS"], "that is the file of the jobs"),
        (["--results", "JOBS/../one.mp4"], "one.mp4: the video of line 1 goes there"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(
    jobs: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
) -> None:
    before = sorted(jobs.parent.iterdir())
    assert cli.main(["batch", str(jobs), *[flag.replace("JOBS", str(jobs)) for flag in flags]]) == 2
    assert sentence in capsys.readouterr().err
    assert sorted(jobs.parent.iterdir()) == before


def test_ray_that_is_not_installed_is_explained(
    jobs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "vexpress_trt.serving.batch_ray", raising=False)
    assert cli.main(["batch", str(jobs), "--ray", "local"]) == 2
    assert "python -m pip install 'vexpress-trt[ray]'" in capsys.readouterr().err
