"""Loops that have to give the same numbers: what the GPU check calls a fault."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

from vexpress_trt.bench.gpu_check.loops import faults, largest


def test_loops_that_differ_are_named() -> None:
    same = {
        "captured_equals_eager": True,
        "largest_to_eager": 0.0,
        "equals_the_cpus_loop_with_this_engine": True,
        "largest_to_the_cpus_loop": 0.0,
        "largest_to_the_cpu_alone": 1e-5,
    }
    assert faults(same, alone=True) == []
    assert len(faults({**same, "captured_equals_eager": False, "largest_to_eager": 0.1}, alone=True)) == 1
    assert len(faults({**same, "equals_the_cpus_loop_with_this_engine": False}, alone=True)) == 1
    assert faults({**same, "equals_the_cpus_loop_with_this_engine": False}, alone=False) == []
    assert len(faults({**same, "largest_to_the_cpu_alone": float("inf")}, alone=True)) == 1
    assert largest(np.array([1.0, np.nan]), np.array([1.0, 0.0])) == float("inf")
