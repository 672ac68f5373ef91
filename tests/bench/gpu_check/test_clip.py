"""What the GPU check says of a whole clip from a call's time."""

import pytest

pytest.importorskip("torch", reason="needs the export extra")

from vexpress_trt.bench.gpu_check.clip import extrapolated


def test_ten_seconds_are_the_calls_of_all_windows_and_decoding_behind_the_last() -> None:
    found = extrapolated(0.1, 0.01, steps=25)
    assert found["calls"] == 15 * 25
    assert found["seconds"] == pytest.approx(37.5 + 0.01)
    # Fifteen windows are fewer than the 25 that a first frame needs at most.
    assert 15 * 0.1 < found["seconds_to_first_window"] < found["seconds"]
