"""Parts of the GPU check in processes of their own: side by side, ended in time, and what they leave."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vexpress_trt.bench.gpu_check import apart
from vexpress_trt.bench.gpu_check.apart import in_groups, run_apart, run_part
from vexpress_trt.bench.gpu_check.parts import CheckFailed, Part, Record, Setting
from vexpress_trt.bench.gpu_check.report import shown
from vexpress_trt.engines.gpu import gpu_status

SETTING = Setting(Path())


@pytest.fixture
def play_part(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Leaves one part, `slow`, which may take so many seconds; its process is Python with the words given."""

    def play(seconds: float, *words: str) -> None:
        begun = apart.subprocess.Popen
        monkeypatch.setattr(apart, "PARTS", {"slow": Part("none", seconds, seconds)})
        monkeypatch.setattr(apart.subprocess, "Popen", lambda command, **kept: begun([command[0], *words], **kept))

    return play


def test_parts_that_measure_nothing_run_side_by_side_where_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["kernels", "golden", "speed", "clip"]
    monkeypatch.setattr(apart, "usable_cores", lambda: 16)
    assert in_groups(names) == [["kernels", "golden"], ["speed"], ["clip"]]
    assert in_groups(["speed"]) == [["speed"]]
    monkeypatch.setattr(apart, "usable_cores", lambda: 2)
    assert in_groups(names) == [[name] for name in names]


def test_a_part_is_ended_with_all_its_processes(tmp_path: Path, play_part: Callable[..., None]) -> None:
    alive = tmp_path / "alive"
    grandchild = f"import time, pathlib; time.sleep(3); pathlib.Path({str(alive)!r}).touch()"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    play_part(1, "-c", child)
    (result,) = run_apart(["slow"], SETTING, tmp_path)
    assert result.error == "not done after 1 s"
    time.sleep(3)
    assert not alive.exists()


def test_whoever_stops_the_check_gets_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play_part: Callable[..., None]
) -> None:
    (script := tmp_path / "part.py").write_text(
        "import pathlib, time\nprint('at work', flush=True)\n"
        f"pathlib.Path({str(tmp_path / 'slow.json')!r}).write_text('{{\"ms\": 1}}')\n"
        "time.sleep(60)\n"
    )
    play_part(90, str(script))

    def stop(_: float) -> None:
        if (tmp_path / "slow.json").is_file() and (tmp_path / "slow.json").read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr(apart, "sleep", stop)
    results = run_apart(["slow"], SETTING, tmp_path)
    result = next(results)
    assert (result.error, result.found) == ("at work\nstopped from outside", {"ms": 1})
    with pytest.raises(KeyboardInterrupt):
        next(results)


def test_what_an_earlier_run_found_is_not_told_again(tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text('{"ms": 1}', encoding="utf-8")
    (result,) = run_apart(["speed"], replace(SETTING, device="no such device"), tmp_path)
    assert result.error
    assert "ms" not in result.found


def test_what_is_wrong_and_not_finite_can_be_written_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(setting: Setting, record: Record) -> None:
        record("odd", {"largest": float("inf"), "of": np.float32(2.5), "all": np.bool_(True), "list": (float("nan"),)})
        raise CheckFailed("it is infinite")

    monkeypatch.setattr(apart, "import_module", lambda _: SimpleNamespace(check=check))
    with pytest.raises(CheckFailed):
        run_part("loop", SETTING, tmp_path / "loop.json")
    found = json.loads((tmp_path / "loop.json").read_text())
    assert found == {"odd": {"largest": "inf", "of": 2.5, "all": True, "list": ["nan"]}, "wrong": "it is infinite"}
    assert shown(found["odd"]) == "largest inf, of 2.500, all True, list nan"


@pytest.mark.skipif(not gpu_status().reason, reason="this machine has a GPU")
def test_without_a_gpu_tensorrt_is_not_run_and_says_why(tmp_path: Path) -> None:
    (result,) = run_apart(["tensorrt"], replace(SETTING, quick=True), tmp_path)
    assert (result.error, result.outcome) == ("", "not run")
    assert "tensorrt" in result.found["skipped"]
