"""`vexpress bench sweep` varies one thing at a time, each run a `generate` of its own."""

import json
from pathlib import Path

import pytest

from vexpress_trt import cli
from vexpress_trt.bench.sweep import SweepSettings, _settings, generate_flags
from vexpress_trt.runtime.request import GenerationRequest


def test_one_thing_varies_at_a_time() -> None:
    request = GenerationRequest("a.png", "a.wav", bundle="b", threads=2)
    settings = SweepSettings(request, lengths=(20.0, 60.0), window_batches=(1, 4), thread_counts=(1,))
    assert [
        (each.varied, each.value, each.seconds, each.request.window_batch, each.request.threads)
        for each in _settings(settings)
    ] == [
        ("length", 20.0, 20.0, 1, 2),
        ("length", 60.0, 60.0, 1, 2),
        ("window_batch", 1, 20.0, 1, 2),
        ("window_batch", 4, 20.0, 4, 2),
        ("threads", 1, 20.0, 1, 1),
    ]
    assert all(each.request.portrait_cache == "off" for each in _settings(settings))


def test_the_flags_make_the_request_again() -> None:
    request = GenerationRequest(
        Path("a.png"), Path("a.wav"), bundle=Path("b"), save_gpu_memory=True, num_inference_steps=3, guidance_scale=2.5
    )
    args = cli._parser().parse_args(["generate", *generate_flags(request)])
    assert GenerationRequest(**{name: getattr(args, name) for name in request.__dict__}) == request


def test_table_and_json(job_files, other_bundle: Path, tmp_path: Path, capsys) -> None:
    report_path = tmp_path / "sweep.json"
    flags = [*job_files.flags, "--lengths", "0.6,1.0", "--window_batches", "2", "--num_inference_steps", "2"]
    flags += ["--fps", "25", "--threads", "1", "--backend", "onnxruntime", "--json", str(report_path)]
    assert cli.main(["bench", "sweep", str(other_bundle), *flags]) == 0
    table = capsys.readouterr().out
    report = json.loads(report_path.read_text())
    points = report["points"]
    assert [(point["varied"], point["value"], point["frames"]) for point in points] == [
        ("length", 0.6, 15),
        ("length", 1.0, 25),
        ("window_batch", 2, 15),
    ]
    for point in points:
        assert 0 < point["time_to_first_frame"] < point["seconds"]["median"]
        assert 0 < point["denoiser_calls_before_first_frame"] <= point["denoiser_calls"] == 2 * point["windows"]
        assert point["peak_memory_mib"] > 50
        assert f"| {point['varied']} {point['value']:g} |" in table
    assert str(tmp_path) not in report_path.read_text() and str(other_bundle.parent) not in report_path.read_text()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--lengths", "1,x"], "a comma-separated list"),
        (["--lengths", "1,nan"], "positive numbers"),
        (["--thread_counts", "0"], "positive numbers"),
    ],
)
def test_lists_that_are_none_are_refused(flags: list[str], sentence: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "sweep", "b", *flags])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_run_that_fails_is_named(job_files, other_bundle: Path, capsys) -> None:
    flags = [*job_files.flags, "--lengths", "0.4", "--retarget_strategy", "fix_face"]  # the portrait is noise
    assert cli.main(["bench", "sweep", str(other_bundle), *flags]) == 2
    assert "vexpress: error: length 0.4: " in capsys.readouterr().err
