"""What a run says at its end."""

from dataclasses import MISSING, fields

import pytest

from vexpress_trt.runtime.summary import Summary

CLIP = {"frames": 50, "width": 128, "height": 96, "fps": 25.0, "duration_seconds": 2.0}
OF_TYPE = {int: 1, float: 1.0, str: "word", bool: False}


def summary(**given: object) -> Summary:
    needed = {spec.name: OF_TYPE.get(spec.type) for spec in fields(Summary) if spec.default is MISSING}
    return Summary(**needed | CLIP | {"stage_seconds": {"denoise": 1.5}} | given)


@pytest.mark.parametrize(
    ("path", "said"), [("clips/a.mp4", "wrote clips/a.mp4 (libx264)"), ("-", "streamed (libx264)")]
)
def test_the_last_line_says_where_the_video_is(path: str, said: str) -> None:
    assert summary(output_path=path, encoder="libx264").as_text().splitlines()[-1] == said


def test_frames_that_nobody_wrote_are_counted_all_the_same() -> None:
    lines = summary(output_path=None).as_text().splitlines()
    assert lines[0].startswith("50 frames of 128x96 at 25 frames/s (2.00 s)")
    assert lines[-1] == "seconds per stage: denoise 1.5"
