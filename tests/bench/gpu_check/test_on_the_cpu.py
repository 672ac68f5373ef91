"""Parts of the GPU check where there is no GPU: they run to their end on the CPU in the smallest sizes."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the export extra")

from vexpress_trt.bench.gpu_check.apart import run_part
from vexpress_trt.bench.gpu_check.parts import Setting

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("part", ["loop", "golden", "waits", "generate", "speed", "clip"])
def test_a_part_runs_on_the_cpu(part: str, tmp_path: Path) -> None:
    if part in ("golden", "generate"):
        pytest.importorskip("diffusers")
    run_part(part, Setting(ROOT, "cpu", quick=True), tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    expected = {
        "loop": "ddim, two graphs, fp32",
        "golden": "denoiser_single, fused",
        "waits": "calls",
        "generate": "a long clip",
        "speed": "exact captured, fp32",
        "clip": "ten_seconds_extrapolated",
    }
    assert expected[part] in found
