"""The start of a process, from several of them."""

import pytest

from vexpress_trt.bench.report import Spread
from vexpress_trt.bench.startup import combined, measure_startup
from vexpress_trt.engines.errors import UserError


def test_parts_are_medians_and_the_whole_is_of_whole_processes() -> None:
    start = combined(
        [{"imports": 1.0, "denoise": 2.0}, {"imports": 3.0, "denoise": 1.0}, {"imports": 2.0, "speech": 4.0}]
    )
    assert start.processes == 3
    assert start.seconds == Spread(4.0, 3.0, 6.0)
    assert start.parts == {"imports": 2.0, "denoise": 1.0, "speech": 0.0}


def test_no_repeats_are_no_measurement() -> None:
    assert measure_startup(0, bundle="x") is None


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(UserError, match="the measurement of the start: there is no bundle at none.bundle"):
        measure_startup(1, bundle="none.bundle", backend="onnxruntime")
