"""Progress outside a terminal is plain lines, few of them."""

import io

from vexpress_trt.runtime.progress import ProgressEvent, Reporter


def _lines(reporter_options: dict, events: list[ProgressEvent]) -> list[str]:
    stream = io.StringIO()
    with Reporter(stream=stream, **reporter_options) as reporter:
        for event in events:
            reporter(event)
    return stream.getvalue().splitlines()


def test_a_line_at_each_stages_start_and_end_but_not_for_every_event() -> None:
    events = [ProgressEvent("denoise", done, 100, f"window {done}") for done in range(1, 101)]
    lines = _lines({"interval": 3600.0}, [*events, ProgressEvent("decode", 1, 2)])
    assert [line.split("  ")[:2] for line in lines] == [["denoise", "1/100"], ["denoise", "100/100"], ["decode", "1/2"]]


def test_every_event_is_shown_when_the_interval_has_passed_with_rate_and_time_left() -> None:
    events = [ProgressEvent("denoise", done, 4, f"window 0 step {done}", frames_done=done) for done in (1, 2)]
    lines = _lines({"interval": 0.0}, events)
    assert len(lines) == 2
    assert "window 0 step 2" in lines[1]
    assert "frames/s" in lines[1]
    assert "left" in lines[1]


def test_quiet_is_silent() -> None:
    assert _lines({"quiet": True}, [ProgressEvent("denoise", 1, 1)]) == []
