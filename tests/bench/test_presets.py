"""What a clip costs by each preset, in a process and from a server."""

import subprocess
import sys

from vexpress_trt.bench.fresh import Finished
from vexpress_trt.bench.presets import PROCESS, SERVER, measure
from vexpress_trt.bench.report import Spread
from vexpress_trt.runtime.presets import PRESETS

FLAGS = ["--audio_path", "speech.flac"]
AT = ["--server", "here:1"]


class Clips:
    """Stands in for `vexpress generate`: the clips of a round take the same, each round a second more."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, flags: list[str]) -> Finished:
        number = sum(flags == each for each in self.asked)
        self.asked.append(flags)
        result = {"frames": 10, "denoiser_calls": 5, "total_seconds": 20.0 + number, "time_to_first_frame": 1.0}
        return Finished(30.0 + number, result)


def test_all_kinds_take_turns_and_the_first_round_is_not_counted() -> None:
    clips = Clips()
    report = measure(FLAGS, 3, AT, clips)
    turn = [[*FLAGS, "--preset", preset] for preset in PRESETS]
    assert clips.asked == 4 * [*turn, *([*flags, *AT] for flags in turn)]
    assert [(cost.preset, cost.where) for cost in report.costs] == [
        (preset, where) for where in (PROCESS, SERVER) for preset in PRESETS
    ]
    for cost in report.costs:
        assert cost.seconds == (Spread(32, 31, 33) if cost.where == PROCESS else Spread(22, 21, 23))


def test_the_table_has_seconds_for_each_frame() -> None:
    text = measure(FLAGS, 1, AT, Clips()).as_text()
    assert "| exact | process | 3.10 (3.10-3.10) | 1.00 (1.00-1.00) | 10 |" in text
    assert "| exact | warm server | 2.10 (2.10-2.10) | 1.00 (1.00-1.00) | 10 |" in text


def test_without_a_server_there_are_processes_only() -> None:
    assert {cost.where for cost in measure(FLAGS, 1, None, Clips()).costs} == {PROCESS}


def test_a_place_that_cannot_be_written_ends_it_with_a_sentence_before_anything_runs(tmp_path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "vexpress_trt.bench.presets", "--json", str(tmp_path / "file" / "x.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("vexpress: error: ") and len(done.stderr.splitlines()) == 1
