"""The lines of a batch: what they may say, what refuses the whole file, and when two ask for the same clip."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.serving.batch_jobs import identity, read_jobs

JOB = {"reference_image_path": "a.png", "audio_path": "b.wav", "output_path": "out.mp4"}


@pytest.fixture
def jobs_of(tmp_path: Path) -> Callable[..., Path]:
    def write(*jobs: dict | str) -> Path:
        path = tmp_path / "jobs.jsonl"
        path.write_text("\n".join(job if isinstance(job, str) else json.dumps(job) for job in jobs))
        return path

    return write


def test_relative_paths_are_meant_from_the_files_folder(jobs_of: Callable[..., Path], tmp_path: Path) -> None:
    (job,) = read_jobs(jobs_of({**JOB, "output_path": "clips/../one.mp4", "bundle": "/models/m.bundle"}), {})
    assert job.request.reference_image_path == tmp_path / "a.png"
    assert job.request.bundle == Path("/models/m.bundle")
    assert job.output == str(tmp_path / "one.mp4")


def test_defaults_fill_what_a_job_leaves_out(jobs_of: Callable[..., Path]) -> None:
    lines = [{**JOB, "seed": None}, {**JOB, "seed": 7, "output_path": "two.mp4", "preset": "exact"}]
    first, second = read_jobs(jobs_of(*lines), {"seed": 3, "preset": "fast", "bundle": Path("m.bundle")})
    assert (first.request.seed, first.request.num_inference_steps) == (3, 5)
    assert (second.request.seed, second.request.num_inference_steps) == (7, 25)
    assert first.request.bundle == Path.cwd() / "m.bundle"


def test_lines_are_counted_as_an_editor_counts_them(jobs_of: Callable[..., Path]) -> None:
    assert [job.line for job in read_jobs(jobs_of("", JOB, "  ", {**JOB, "output_path": "2.mp4"}), {})] == [2, 4]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not a JSON object"),
        ({**JOB, "sede": 1}, "'sede' is not a field of a request"),
        ({**JOB, "gpu_id": 1}, "the batch gives every worker its device"),
        ({**JOB, "dump_tensors": "t.npz"}, "one clip at a time"),
        ({**JOB, "seed": "1"}, 'seed: expected a whole number, got "1"'),
        ('{"reference_image_path": "a.png", "audio_path": "b.wav", "output_path": "o.mp4", "fps": NaN}', "--fps nan"),
        ({**JOB, "preset": "slow"}, "--preset slow: choose one of"),
        ({**JOB, "output_path": None}, "output_path is missing"),
        ({**JOB, "output_path": "\ud800.mp4"}, "output_path: half a character"),
        ({**JOB, "output_path": "-"}, "let the name end in .mp4"),
        ({"output_path": "o.mp4"}, "--reference_image_path is missing"),
    ],
)
def test_a_line_that_cannot_be_used_refuses_the_file(
    jobs_of: Callable[..., Path], line: dict | str, sentence: str
) -> None:
    with pytest.raises(UserError, match="nothing was started:\n  line 2: ") as refusal:
        read_jobs(jobs_of({**JOB, "output_path": "good.mp4"}, line), {})
    assert sentence in str(refusal.value)


def test_all_bad_lines_are_listed_up_to_a_limit(jobs_of: Callable[..., Path]) -> None:
    with pytest.raises(UserError) as refusal:
        read_jobs(jobs_of(*["nonsense"] * 23), {})
    assert "line 20: is not JSON" in str(refusal.value)
    assert str(refusal.value).endswith("and 3 more")


def test_two_jobs_with_one_output_are_refused(jobs_of: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"line 2: output_path .*out\.mp4 is written by line 1 already"):
        read_jobs(jobs_of(JOB, {**JOB, "output_path": "link/out.mp4"}), {})


def test_an_output_that_a_job_reads_is_refused(jobs_of: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"line 1: output_path .*out\.mp4 is an input of line 2"):
        read_jobs(jobs_of(JOB, {**JOB, "output_path": "two.mp4", "audio_path": "out.mp4"}), {})


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe{}"])
def test_a_file_without_jobs_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "jobs.jsonl").write_bytes(content)
    with pytest.raises(UserError, match="expected one JSON object of request fields a line"):
        read_jobs(tmp_path / "jobs.jsonl", {})
    with pytest.raises(UserError, match="cannot read .*none.jsonl: no such file"):
        read_jobs(tmp_path / "none.jsonl", {})


@pytest.fixture
def clip(tmp_path: Path) -> GenerationRequest:
    (tmp_path / "a.png").write_bytes(b"portrait")
    (tmp_path / "b.wav").write_bytes(b"speech")
    return GenerationRequest(tmp_path / "a.png", tmp_path / "b.wav", tmp_path / "out.mp4")


def test_a_request_is_known_by_the_content_of_its_files(clip: GenerationRequest, tmp_path: Path) -> None:
    (tmp_path / "copy.wav").write_bytes(b"speech")
    before = identity(clip)
    assert identity(replace(clip, audio_path=tmp_path / "copy.wav", output_path=tmp_path / "elsewhere.mp4")) == before
    assert identity(replace(clip, threads=3, gpu_id=1, gpu_memory="8GB", portrait_cache="off")) == before
    (tmp_path / "b.wav").write_bytes(b"Speech, and more")
    assert identity(clip) != before


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["audio_path", "reference_image_path", "kps_path"])
def test_what_has_no_end_is_not_hashed(clip: GenerationRequest, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is no regular file"):
        identity(replace(clip, **{name: tmp_path / "pipe"}))


def test_a_track_is_known_by_the_size_and_rate_beside_it_as_well(clip: GenerationRequest, tmp_path: Path) -> None:
    (tmp_path / "t.npy").write_bytes(b"points")
    clip = replace(clip, kps_path=tmp_path / "t.npy")
    alone = identity(clip)
    (tmp_path / "t.npy.json").write_text('{"fps": 25}')
    slow = identity(clip)
    (tmp_path / "t.npy.json").write_text('{"fps": 29.97}')
    assert len({alone, slow, identity(clip)}) == 3


def test_a_face_detector_is_known_by_its_models_not_by_where_they_lie(clip: GenerationRequest, tmp_path: Path) -> None:
    for folder, content in (("one", b"a detector"), ("copy", b"a detector"), ("other", b"another one")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "det_10g.onnx").write_bytes(content)
    one, copy, other = (identity(replace(clip, face_model_dir=tmp_path / name)) for name in ("one", "copy", "other"))
    assert one == copy
    assert len({one, other, identity(clip)}) == 3


def test_other_settings_or_another_model_make_another_request(clip: GenerationRequest, tmp_path: Path) -> None:
    (tmp_path / "m.bundle").mkdir()
    (tmp_path / "m.bundle" / "manifest.json").write_text("{}")
    kinds = [clip, replace(clip, seed=1), replace(clip, guidance_scale=2.0), replace(clip, save_gpu_memory=True),
             replace(clip, bundle=tmp_path / "m.bundle"), replace(clip, kps_path=tmp_path / "a.png")]  # fmt: skip
    assert len({identity(kind) for kind in kinds}) == len(kinds)
