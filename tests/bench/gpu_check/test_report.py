"""The GPU check's report: machine, outcomes, findings, and what was not run."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from vexpress_trt.bench.gpu_check import report
from vexpress_trt.bench.gpu_check.parts import PartResult, Setting
from vexpress_trt.bench.gpu_check.report import as_markdown, describe_gpu, file_name, shown, write_results
from vexpress_trt.engines.gpu import Gpu, GpuStatus

SETTING = Setting(Path(), "cuda")
MACHINE = {
    "gpu": "Some GPU", "gpu_memory": "9 MiB", "driver": "1.2", "python": "3.12", "cores": 8, "cpu": "Some CPU",
    "packages": {"torch": "2.11.0", "triton": "3.6.0"},
}  # fmt: skip


def test_the_report_says_machine_outcomes_and_findings() -> None:
    results = [
        PartResult("speed", 12.3, "", {"memory_fp16": {"peak_allocated_mib": 100.0, "share": 0.5}}),
        PartResult("clip", 1.0, "Traceback\nValueError: no"),
    ]
    text = as_markdown(results, MACHINE, SETTING)
    assert text.startswith("GPU Some GPU, 9 MiB, driver 1.2; Python 3.12; 8 cores of Some CPU\n")
    assert "| speed | passed | 12.3 |" in text and "Packages: torch 2.11.0, triton 3.6.0\n" in text
    assert "| memory_fp16 | peak_allocated_mib 100.0, share 0.5000 |" in text
    assert "```\nTraceback\nValueError: no\n```" in text
    assert shown(["a", 1]) == "a<br>1"
    assert file_name("NVIDIA GeForce RTX 4090") == "geforce_rtx_4090" and file_name("NVIDIA H200") == "h200"


def test_the_report_names_the_card_that_runs_whatever_else_the_machine_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    rows = (
        "NVIDIA H200, 580.1, 143771 MiB, 700 W, 1980 MHz",
        "NVIDIA H100 80GB HBM3, 580.1, 81559 MiB, 650 W, 1980 MHz",
        "NVIDIA A10, 580.1",
    )
    tool.write_text("\n".join(["#!/bin/sh", *(f"echo '{row}'" for row in rows)]))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    card = GpuStatus("13.0", (Gpu(0, "NVIDIA H100 80GB HBM3", 79 << 30, (9, 0)),), "")
    monkeypatch.setattr(report, "gpu_status", lambda: card)
    machine = describe_gpu()
    written = write_results([], machine, SETTING, tmp_path)
    assert written.name == "check_h100_80gb_hbm3.md"
    assert written.read_text().startswith("GPU NVIDIA H100 80GB HBM3, 81559 MiB, 650 W, driver 580.1")
    monkeypatch.setattr(report, "gpu_status", lambda: replace(card, devices=(replace(card.devices[0], name="X"),)))
    assert describe_gpu()["gpu"] == "X" and "power_limit" not in describe_gpu()


def test_the_report_says_what_was_not_run_and_why() -> None:
    results = [PartResult("tensorrt", 0.1, found={"skipped": "tensorrt is not installed"})]
    text = as_markdown(results, MACHINE, SETTING)
    assert "| tensorrt | not run | 0.1" in text and "| skipped | tensorrt is not installed |" in text
    assert "| compiled | not run: --compile asks for it |" in text and "| clip | not run |" in text
    assert "| full_tensorrt | not run: --bundle asks for it |" in text
    assert PartResult("waits", 1.0, found={"skipped": "the decoder", "waits": {}}).outcome == "passed"


def test_a_report_that_cannot_be_put_in_words_costs_no_figures(tmp_path: Path) -> None:
    results = [PartResult("speed", 1.0, found={"times_faster_than_x": {"not": "a number"}})]
    written = write_results(results, MACHINE, SETTING, tmp_path)
    assert "TypeError" in written.read_text()
    assert json.loads(written.with_suffix(".json").read_text())["parts"][0]["name"] == "speed"
