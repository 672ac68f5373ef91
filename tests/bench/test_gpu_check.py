"""The GPU check where there is no GPU: parts run on the CPU in the smallest sizes; its arithmetic and report hold."""

import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

from vexpress_trt.bench.gpu_check import __main__ as command
from vexpress_trt.bench.gpu_check import parts as parts_module
from vexpress_trt.bench.gpu_check import report
from vexpress_trt.bench.gpu_check.clip import extrapolated
from vexpress_trt.bench.gpu_check.kernels import TESTS, outcomes
from vexpress_trt.bench.gpu_check.loops import faults, largest
from vexpress_trt.bench.gpu_check.networks import MINI
from vexpress_trt.bench.gpu_check.parts import PartResult, Setting, run_part
from vexpress_trt.bench.gpu_check.report import as_markdown, describe_gpu, file_name, shown, write_results
from vexpress_trt.bench.gpu_check.shapes import count_bytes, count_flop
from vexpress_trt.bench.gpu_check.speed import attends, figures, passes
from vexpress_trt.bench.gpu_check.waits import counted_driver_calls, is_wait
from vexpress_trt.engines.driver import Driver
from vexpress_trt.engines.gpu import Gpu, GpuStatus, gpu_status
from vexpress_trt.runtime.cuda.gpu import GpuBuffer, GpuDevice

ROOT = Path(__file__).resolve().parent.parent.parent
MACHINE = {
    "gpu": "Some GPU", "gpu_memory": "9 MiB", "driver": "1.2", "python": "3.12", "cores": 8, "cpu": "Some CPU",
    "packages": {},
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
        "generate": "video",
        "speed": "unfused captured, fp32",
        "clip": "ten_seconds_extrapolated",
    }
    assert expected[part] in found


def test_a_part_that_fails_or_takes_too_long_leaves_what_it_found_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(parts_module.PARTS, "loop", ("loops", 0.1, 0.1))
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--quick", "--only", "loop,golden"]
    assert command.main([*arguments, "--repository", str(tmp_path)]) == 1
    document = json.loads((tmp_path / "check_none.json").read_text())
    loop, golden = document["parts"]
    assert loop["error"] == "not done after 0 s"
    assert "Error" in golden["error"]
    assert "### golden" in capsys.readouterr().out


def test_a_share_of_the_ceiling_is_operations_over_time() -> None:
    found = figures(0.1, 40_000_000_000_000, 800.0)
    assert found == {"ms": 100.0, "tflops": 400.0, "share_of_ceiling": 0.5}


def test_operations_are_counted_from_shapes_and_the_plain_network_has_more() -> None:
    networks, sizes = MINI.networks(), {"B": 1, "F": 2, "h": 8, "w": 8}
    exact, plain = (count_flop(networks, sizes, plain=plain) for plain in (False, True))
    assert 0 < exact < plain
    assert count_flop(networks, {**sizes, "F": 4}, plain=False) > 1.9 * exact


def test_bytes_are_counted_from_shapes_and_the_fused_form_moves_fewer() -> None:
    networks, sizes = MINI.networks(), {"B": 1, "F": 2, "h": 8, "w": 8}
    fused, unfused = (count_bytes(networks, sizes, "fp16", fused=form) for form in (True, False))
    images, pixels, channels, size = 4, 8 * 8, 32, 2
    first = images * pixels * channels * size
    # Feed-forwards: six in the first level, five in the second with twice the channels and a quarter of the pixels.
    assert fused["gated_gelu"] == (8 + 4) * (6 * first + 5 * first // 2)
    assert fused["bias of a convolution"] < unfused["bias of a convolution"] / 3
    assert sum(fused.values()) < 0.6 * sum(unfused.values())
    assert sum(count_bytes(networks, sizes, "fp32", fused=True).values()) == pytest.approx(
        2 * sum(fused.values()), rel=0.02
    )


def test_passes_take_the_time_that_their_bytes_need() -> None:
    found = passes({"add": 30_000_000_000, "silu": 10_000_000_000, "mul": 8}, bandwidth=4000.0)
    assert found == {"gb": pytest.approx(40.0), "ms_at_the_bandwidth": pytest.approx(10.0), "add": 30.0, "silu": 10.0}


def test_ten_seconds_are_the_calls_of_all_windows_and_decoding_behind_the_last() -> None:
    found = extrapolated(0.1, 0.01, steps=25)
    assert found["calls"] == 15 * 25
    assert found["seconds"] == pytest.approx(37.5 + 0.01)
    # Fifteen windows are fewer than the 25 that a first frame needs at most.
    assert 15 * 0.1 < found["seconds_to_first_window"] < found["seconds"]


@pytest.mark.parametrize(
    ("name", "waits"),
    [
        ("cudaStreamSynchronize", True),
        ("cuCtxSynchronize", True),
        ("cudaMemcpy", True),
        ("cudaMemcpyAsync", False),
        ("cuMemcpyHtoDAsync", False),
        ("cuMemcpyDtoH_v2", True),
        ("cudaGraphLaunch", False),
        ("cuEventQuery", False),
    ],
)
def test_a_call_that_lets_the_host_wait_is_known_by_its_name(name: str, waits: bool) -> None:
    assert is_wait(name) == waits


def test_what_the_loop_asks_of_the_driver_is_counted_by_name() -> None:
    names = ("cuCtxPushCurrent", "cuCtxPopCurrent", "cuMemsetD8Async", "cuStreamSynchronize")
    device, gpu = GpuDevice.__new__(GpuDevice), Driver.__new__(Driver)
    device._driver, gpu._context = gpu, None
    gpu.module = SimpleNamespace(CUresult=SimpleNamespace(CUDA_SUCCESS=0), **dict.fromkeys(names, lambda *given: (0,)))
    buffer = GpuBuffer(256, (4,), np.dtype(np.uint8))
    with counted_driver_calls() as calls:
        device.clear(buffer, stream=7)
        gpu.stream_synchronize(7)
    device.clear(buffer, stream=7)
    assert calls == dict.fromkeys(names, 1)
    assert [name for name in calls if is_wait(name)] == ["cuStreamSynchronize"]


def test_all_tests_that_need_a_gpu_are_run() -> None:
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if re.search(r"mark\.gpu\b", path.read_text())]
    assert {path.relative_to(ROOT).as_posix() for path in marked if path != Path(__file__)} == set(TESTS)


def test_pytests_closing_line_is_read() -> None:
    text = "....\nFAILED tests/x.py::test_a\n1 failed, 12 passed, 3 skipped, 2 errors in 4.5s\n"
    assert outcomes(text) == {"passed": 12, "failed": 1, "skipped": 3, "errors": 2}
    assert outcomes("") == {"passed": 0, "failed": 0, "skipped": 0, "errors": 0}


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


def test_the_report_says_machine_outcomes_and_findings() -> None:
    results = [
        PartResult("speed", 12.3, "", {"exact captured, fp16": {"ms": 100.0, "share_of_ceiling": 0.5}}),
        PartResult("clip", 1.0, "Traceback\nValueError: no"),
    ]
    text = as_markdown(results, MACHINE, Setting(ROOT, "cuda"))
    assert text.startswith("GPU Some GPU, 9 MiB, driver 1.2; torch none; Python 3.12; 8 cores of Some CPU\n")
    assert "| speed | passed | 12.3 |" in text
    assert "| exact captured, fp16 | ms 100.0, share_of_ceiling 0.5000 |" in text
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
    )
    tool.write_text("\n".join(["#!/bin/sh", *(f"echo '{row}'" for row in rows)]))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    card = GpuStatus("13.0", (Gpu(0, "NVIDIA H100 80GB HBM3", 79 << 30, (9, 0)),), "")
    monkeypatch.setattr(report, "gpu_status", lambda: card)
    machine = describe_gpu()
    written = write_results([], machine, Setting(ROOT, "cuda"), tmp_path)
    assert written.name == "check_h100_80gb_hbm3.md"
    assert written.read_text().startswith("GPU NVIDIA H100 80GB HBM3, 81559 MiB, 650 W, driver 580.1")
    monkeypatch.setattr(report, "gpu_status", lambda: replace(card, devices=(replace(card.devices[0], name="X"),)))
    assert describe_gpu()["gpu"] == "X" and "power_limit" not in describe_gpu()


def test_the_report_says_what_was_not_run_and_why() -> None:
    results = [PartResult("tensorrt", 0.1, found={"skipped": "tensorrt is not installed"})]
    text = as_markdown(results, MACHINE, Setting(ROOT, "cuda"))
    assert "| tensorrt | not run | 0.1" in text and "| skipped | tensorrt is not installed |" in text
    assert "| compiled | not run: --compile asks for it |" in text
    assert "| full_tensorrt | not run: --bundle asks for it |" in text
    assert PartResult("waits", 1.0, found={"skipped": "the decoder", "waits": {}}).outcome == "passed"


@pytest.mark.parametrize(
    ("kernel", "fused"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", True),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<...>>", True),
        ("fmha_cutlassF_f16_aligned_64x64_rf_sm80", True),
        ("temporal_attention", False),
        ("void (anonymous namespace)::softmax_warp_forward<...>", False),
    ],
)
def test_fused_attention_is_known_by_the_kernels_name(kernel: str, fused: bool) -> None:
    assert attends(kernel) == fused


@pytest.mark.skipif(not gpu_status().reason, reason="this machine has a GPU")
def test_without_a_gpu_the_check_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command.main(["--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("gpu_check: error: ") and said.err.count("\n") == 1 and not said.out


@pytest.mark.skipif(not gpu_status().reason, reason="this machine has a GPU")
def test_without_a_gpu_tensorrt_is_not_run_and_says_why(tmp_path: Path) -> None:
    result = parts_module.run_apart("tensorrt", Setting(ROOT, "cuda", quick=True), tmp_path)
    assert (result.error, result.outcome) == ("", "not run")
    assert "tensorrt" in result.found["skipped"]


def test_what_an_earlier_run_found_is_not_told_again(tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text('{"ms": 1}', encoding="utf-8")
    result = parts_module.run_apart("speed", Setting(ROOT, "no such device"), tmp_path)
    assert result.error
    assert "ms" not in result.found


def test_a_part_is_ended_with_all_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = tmp_path / "alive"
    grandchild = f"import time, pathlib; time.sleep(3); pathlib.Path({str(alive)!r}).touch()"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    monkeypatch.setattr(parts_module, "PARTS", {"slow": ("none", 1, 1)})
    original = parts_module.subprocess.Popen
    monkeypatch.setattr(
        parts_module.subprocess, "Popen", lambda command, **kept: original([command[0], "-c", child], **kept)
    )
    assert parts_module.run_apart("slow", Setting(ROOT), tmp_path).error == "not done after 1 s"
    time.sleep(3)
    assert not alive.exists()
