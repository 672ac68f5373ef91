"""The file of results: it only grows, survives a torn end, and belongs to one run at a time."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.serving.batch_jobs import Job, identity
from vexpress_trt.serving.batch_results import Results


@pytest.fixture
def job(tmp_path: Path) -> Job:
    for name in ("a.png", "b.wav", "out.mp4"):
        (tmp_path / name).write_bytes(b"content")
    return Job(1, GenerationRequest(tmp_path / "a.png", tmp_path / "b.wav", tmp_path / "out.mp4"))


def _record(job: Job, status: str = "done") -> dict:
    return {"status": status, "output_path": job.output, "identity": identity(job.request), "output_bytes": 7}


def test_what_was_recorded_is_known_to_the_next_run(job: Job, tmp_path: Path) -> None:
    with Results(tmp_path / "r.jsonl") as results:
        assert not results.has(job)
        results.append(_record(job))
    with Results(tmp_path / "r.jsonl") as results:
        assert results.has(job)
        results.append(_record(job, "failed"))
        assert not results.has(job), "the latest record counts"
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("change", ["settings", "speech", "video gone", "video cut", "speech gone"])
def test_a_clip_is_made_again_when_anything_changed(job: Job, tmp_path: Path, change: str) -> None:
    with Results(tmp_path / "r.jsonl") as results:
        results.append(_record(job))
        if change == "settings":
            job = Job(1, replace(job.request, seed=1))
        elif change.endswith("gone"):
            (tmp_path / ("out.mp4" if change.startswith("video") else "b.wav")).unlink()
        else:
            (tmp_path / ("out.mp4" if change.startswith("video") else "b.wav")).write_bytes(b"cont")
        assert not results.has(job)


def test_a_torn_last_line_is_cut_off(job: Job, tmp_path: Path) -> None:
    whole = json.dumps(_record(job)).encode() + b"\n"
    for end in (1, 5, len(whole) // 2, len(whole) - 1):
        (tmp_path / "r.jsonl").write_bytes(whole + whole[:end])
        with Results(tmp_path / "r.jsonl") as results:
            results.append(_record(job, "failed"))
        first, second = (tmp_path / "r.jsonl").read_text().splitlines()
        assert (json.loads(first)["status"], json.loads(second)["status"]) == ("done", "failed")


@pytest.mark.parametrize("content", ['{"reference_image_path": "a.png"}', "{\n", '{"status": "done"}\n', "[]\n"])
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.jsonl").write_text(content)
    with pytest.raises(UserError, match="name another file with --results"), Results(tmp_path / "r.jsonl"):
        pass
    assert (tmp_path / "r.jsonl").read_text() == content


def test_a_full_disk_is_a_sentence(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, line: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Results(tmp_path / "r.jsonl") as results:
        monkeypatch.setattr("os.write", full)
        with pytest.raises(UserError, match=r"result of .*out\.mp4 could not be written .*: no space left on device"):
            results.append(_record(job))
        monkeypatch.undo()
        assert not results.has(job)


def test_a_device_is_no_file_of_results(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="no regular file"), Results(tmp_path / "pipe"):
        pass


def test_a_second_run_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "new" / "r.jsonl"
    with Results(path), pytest.raises(UserError, match="another `vexpress batch` is writing"), Results(path):
        pass
    with Results(path):
        pass
