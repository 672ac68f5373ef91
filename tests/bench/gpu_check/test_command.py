"""The GPU check as a command: parts in turn, what is left out for want of time, and machines without a GPU."""

import json
from pathlib import Path

import pytest

from vexpress_trt.bench.gpu_check import __main__ as command
from vexpress_trt.bench.gpu_check.parts import PARTS, Part
from vexpress_trt.engines.gpu import gpu_status


def test_a_part_that_fails_or_takes_too_long_leaves_what_it_found_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(PARTS, "loop", Part("loops", 0.1, 0.1, beside=True))
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--quick", "--only", "loop,golden"]
    assert command.main([*arguments, "--repository", str(tmp_path)]) == 1
    document = json.loads((tmp_path / "check_none.json").read_text())
    golden, loop = document["parts"]
    assert loop["error"] == "not done after 0 s"
    assert "Error" in golden["error"]
    said = capsys.readouterr().out
    assert "loop: failed after" in said and "golden: failed after" in said and len(said) < 2000


def test_a_part_that_nothing_is_left_for_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run_apart", lambda *_: pytest.fail("there is no time for it"))
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--only", "clip", "--seconds", "5"]
    assert command.main(arguments) == 0
    assert "| skipped | the 5 s were over |" in (tmp_path / "check_none.md").read_text()


@pytest.mark.skipif(not gpu_status().reason, reason="this machine has a GPU")
def test_without_a_gpu_the_check_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command.main(["--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("gpu_check: error: ") and said.err.count("\n") == 1 and not said.out
