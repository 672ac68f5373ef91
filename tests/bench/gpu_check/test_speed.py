"""What the GPU check makes of measured times: shares of the ceiling and of the memory's bandwidth."""

import pytest

pytest.importorskip("torch", reason="needs the export extra")

from vexpress_trt.bench.gpu_check.speed import figures, passes


def test_a_share_of_the_ceiling_is_operations_over_time() -> None:
    found = figures(0.1, 40_000_000_000_000, 640.0, 800.0)
    assert found == {"ms": 100.0, "tflops": 400.0, "share_of_ceiling": 0.625, "share_of_ceiling_before": 0.5}


def test_passes_take_the_time_that_their_bytes_need() -> None:
    found = passes({"add": 30_000_000_000, "silu": 10_000_000_000, "mul": 8}, bandwidth=4000.0)
    assert found == {"gb": pytest.approx(40.0), "ms_at_the_bandwidth": pytest.approx(10.0), "add": 30.0, "silu": 10.0}
