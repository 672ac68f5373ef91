"""What every result has in common."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from vexpress_trt.bench.report import Spread, command_line, number, read_json, table, write_json
from vexpress_trt.engines.errors import UserError


def test_a_spread_has_the_median_and_both_ends() -> None:
    spread = Spread.of([3.0, 1.0, 10.0])
    assert (spread.median, spread.min, spread.max) == (3.0, 1.0, 10.0)
    assert spread.scaled(2.0) == Spread(6.0, 2.0, 20.0)
    assert spread.text(2) == "3.0 (1.0-10)"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.0, "0"), (1234.5, "1234"), (12.345, "12.3"), (0.0012345, "0.00123")]
)
def test_numbers_have_significant_digits_and_no_exponent(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_table_is_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_the_command_names_files_without_their_folders() -> None:
    words = ["bench", "compare", "/home/me/x.bundle", "--audio_path", "../in/a b.wav", "--json=/tmp/r.json"]
    assert command_line(words) == "vexpress bench compare x.bundle --audio_path 'a b.wav' --json=r.json"


@dataclass(frozen=True)
class _Result:
    kind: str
    seconds: Spread


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_json(_Result("stages", Spread.of([1.0])), tmp_path / "new" / "r.json")
    assert read_json(tmp_path / "new" / "r.json") == {
        "kind": "stages",
        "seconds": {"median": 1.0, "min": 1.0, "max": 1.0},
    }


@pytest.mark.parametrize("text", [None, "no json", json.dumps([1]), json.dumps({"stages": []})])
def test_what_is_no_result_is_a_sentence(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=r"r\.json is n"):
        read_json(path)
