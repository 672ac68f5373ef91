"""The rate of a video."""

from fractions import Fraction
from types import SimpleNamespace

import pytest

from vexpress_trt.runtime.extract_video import frame_rate

STATED = SimpleNamespace(average_rate=Fraction(24000, 1001), guessed_rate=Fraction(50))


@pytest.mark.parametrize("rate", [24.0, 25.0, 30.0, 30000 / 1001, 60.0])
def test_the_rate_comes_from_the_frames_times_whatever_the_file_states(rate: float) -> None:
    times = [round(n / rate, 5) for n in range(250)]
    assert frame_rate(STATED, times) == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize("frames", [2, 24, 500])
def test_times_in_whole_milliseconds_do_not_blur_a_stated_rate(frames: int) -> None:
    rate = 24000 / 1001
    assert frame_rate(STATED, [round(n / rate, 3) for n in range(frames)]) == rate


def test_a_late_start_does_not_change_the_rate() -> None:
    assert frame_rate(STATED, [3.0 + n / 25 for n in range(100)]) == pytest.approx(25, rel=1e-9)


@pytest.mark.parametrize("times", [[0.0], [None, None], [0.0, None], [1.0, 1.0], [2.0, 1.0]])
def test_without_usable_times_the_stated_rate_counts(times: list[float | None]) -> None:
    assert frame_rate(STATED, times) == pytest.approx(24000 / 1001)


def test_without_any_statement_it_is_thirty() -> None:
    assert frame_rate(SimpleNamespace(average_rate=None, guessed_rate=None), [0.0]) == 30
