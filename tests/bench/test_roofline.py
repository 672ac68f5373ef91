"""Ceilings are measured on the engine that runs the job. Nothing is asserted about how fast a machine is."""

from pathlib import Path

import pytest

from vexpress_trt.bench.flops import FlopCount
from vexpress_trt.bench.roofline import CEILING_DTYPES, Ceiling, Workload, measure_ceilings, reached
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.selection import choose_engines

TINY = Workload(rows=8, columns=8, frames=1, channels=4, side=6)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_every_arithmetic_of_a_backend_has_a_ceiling(other_bundle: Path, backend: str) -> None:
    bundle = Bundle.open(other_bundle)
    choice = choose_engines(bundle, backend=backend)
    ceilings = measure_ceilings(choice, bundle.manifest, threads=1, workload=TINY, repeats=1)
    assert tuple(ceiling.dtype for ceiling in ceilings) == CEILING_DTYPES[backend]
    assert all(0 < min(each.matmul_gflops, each.convolution_gflops) <= each.gflops for each in ceilings)


def test_the_workload_counts_its_own_operations() -> None:
    assert Workload(rows=3, columns=5).matmul_flop == 2 * 3 * 5 * 5
    assert Workload(frames=2, channels=4, side=6).convolution_flop == 2 * (2 * 4 * 36) * (4 * 9)


def test_the_share_is_of_the_better_ceiling() -> None:
    row = reached("vae_decoder", FlopCount(convolution=int(30e9), attention=int(10e9)), 0.5, Ceiling("fp32", 160, 100))
    assert (row.gflop, row.gflops, row.share) == (40, 80, 0.5)
