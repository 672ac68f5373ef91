"""A command in a process of its own gives its JSON, or its sentence."""

import sys
from pathlib import Path

import pytest

from vexpress_trt.bench.fresh import run_fresh
from vexpress_trt.engines.errors import UserError


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a module of this text that a fresh interpreter finds; returns its name."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(text: str) -> str:
        (tmp_path / "tried.py").write_text("import json, os, sys\n" + text)
        return "tried"

    return write


def test_arguments_go_in_and_json_comes_out(module) -> None:
    done = run_fresh(module("print(json.dumps([sys.argv[1:], sys.executable]))"), ["a", "b"], "it")
    assert done.result == [["a", "b"], sys.executable]
    assert done.seconds > 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("print('vexpress: error: no such file', file=sys.stderr); sys.exit(2)", "^the job: no such file$"),
        ("raise ValueError('odd')", "^the job: ValueError: odd$"),
        ("os.abort()", "^the job: it was ended by signal 6"),
        ("sys.exit(3)", "^the job: it ended with status 3"),
        ("print('no json')", "^the job ended without a result"),
    ],
)
def test_a_failure_is_the_processs_own_sentence(module, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        run_fresh(module(text), [], "the job")
