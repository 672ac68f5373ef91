"""The tests that need a GPU, as the GPU check runs them: all of them, each with its outcome."""

import re
from pathlib import Path

import pytest

from vexpress_trt.bench.gpu_check import kernels
from vexpress_trt.bench.gpu_check.kernels import TESTS, outcomes
from vexpress_trt.bench.gpu_check.parts import CheckFailed, Setting

ROOT = Path(__file__).resolve().parents[3]


def test_all_tests_that_need_a_gpu_are_run() -> None:
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if re.search(r"mark\.gpu\b", path.read_text())]
    assert {path.relative_to(ROOT).as_posix() for path in marked if path != Path(__file__)} == set(TESTS)


def test_outcomes_are_read_while_pytest_speaks() -> None:
    said = """\
tests/a/test_x.py::test_one[3-a b] PASSED                                   [ 10%]
tests/a/test_x.py::test_two SKIPPED (needs more)                            [ 20%]
tests/a/test_x.py::test_three FAILED                                        [ 30%]
tests/a/test_x.py::test_four ERROR                                          [ 40%]
FAILED tests/a/test_x.py::test_three - assert 1 == 2
ERROR tests/a/test_x.py::test_four - OSError
ERROR tests/a/test_y.py - ModuleNotFoundError
=================== 1 failed, 1 passed, 1 skipped, 2 errors in 4.5s ===================
tests/a/test_x.py::test_five """
    assert [(test.split("::")[-1], outcome) for test, outcome in outcomes(said.splitlines())] == [
        ("test_one[3-a b]", "PASSED"),
        ("test_two", "SKIPPED"),
        ("test_three", "FAILED"),
        ("test_four", "ERROR"),
        ("tests/a/test_y.py", "ERROR"),
    ]


def test_a_gpu_test_that_fails_is_named_with_what_else_was_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\npytestmark = pytest.mark.gpu\ndef test_right(): pass\ndef test_wrong(): assert 1 == 2\n"
    )
    monkeypatch.setattr(kernels, "TESTS", ("test_it.py",))
    found = {}
    with pytest.raises(CheckFailed, match="^test_it.py::test_wrong FAILED$"):
        kernels.check(Setting(tmp_path), found.__setitem__)
    assert found["tests"] == {"passed": 1, "failed": 1, "skipped": 0, "errors": 0}
    assert found["failed_in_file"] == {"test_it.py": 1}


def test_a_file_that_cannot_be_read_and_a_crash_cost_no_other_gpu_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked = "import os, pytest\npytestmark = pytest.mark.gpu\n"
    (tmp_path / "test_broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "test_it.py").write_text(f"{marked}def test_right(): pass\n")
    (tmp_path / "test_last.py").write_text(f"{marked}def test_crash(): os._exit(9)\n")
    found = {}
    monkeypatch.setattr(kernels, "TESTS", ("test_broken.py", "test_it.py"))
    with pytest.raises(CheckFailed, match="^test_broken.py ERROR$"):
        kernels.check(Setting(tmp_path), found.__setitem__)
    assert found["tests"]["passed"] == 1 and found["failed_in_file"] == {"test_broken.py": 1}
    monkeypatch.setattr(kernels, "TESTS", ("test_it.py", "test_last.py"))
    with pytest.raises(CheckFailed, match="^pytest ended with 9: see the part's log$"):
        kernels.check(Setting(tmp_path), found.__setitem__)
