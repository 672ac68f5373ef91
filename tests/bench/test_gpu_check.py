"""The GPU check where there is no GPU: parts run on the CPU in the smallest sizes; its arithmetic and report hold."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

from vexpress_trt.bench.gpu_check import __main__ as command
from vexpress_trt.bench.gpu_check import apart, kernels, memory, report, surroundings
from vexpress_trt.bench.gpu_check.apart import in_groups, run_apart, run_part
from vexpress_trt.bench.gpu_check.clip import extrapolated
from vexpress_trt.bench.gpu_check.digest import last_words
from vexpress_trt.bench.gpu_check.kernel_times import OURS, by_kind, kind_of
from vexpress_trt.bench.gpu_check.kernels import TESTS, outcomes
from vexpress_trt.bench.gpu_check.loops import faults, largest
from vexpress_trt.bench.gpu_check.memory import MemoryWatch
from vexpress_trt.bench.gpu_check.networks import MINI
from vexpress_trt.bench.gpu_check.parts import (
    PARTS,
    CheckFailed,
    Faults,
    Part,
    PartResult,
    Record,
    Setting,
    Skipped,
)
from vexpress_trt.bench.gpu_check.report import as_markdown, describe_gpu, file_name, shown, write_results
from vexpress_trt.bench.gpu_check.shapes import count_bytes, count_flop
from vexpress_trt.bench.gpu_check.speed import figures, passes
from vexpress_trt.bench.gpu_check.waits import counted_driver_calls, is_wait, is_warned_of
from vexpress_trt.engines.driver import Driver
from vexpress_trt.engines.gpu import Gpu, GpuStatus, gpu_status
from vexpress_trt.runtime.cuda.gpu import GpuBuffer, GpuDevice

ROOT = Path(__file__).resolve().parent.parent.parent
MACHINE = {
    "gpu": "Some GPU", "gpu_memory": "9 MiB", "driver": "1.2", "python": "3.12", "cores": 8, "cpu": "Some CPU",
    "packages": {"torch": "2.11.0", "triton": "3.6.0"},
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
        "generate": "a long clip",
        "speed": "exact captured, fp32",
        "clip": "ten_seconds_extrapolated",
    }
    assert expected[part] in found


def test_a_part_that_fails_or_takes_too_long_leaves_what_it_found_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(PARTS, "loop", Part("loops", 0.1, 0.1, beside=True))
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--quick", "--only", "loop,golden"]
    assert command.main([*arguments, "--repository", str(tmp_path)]) == 1
    document = json.loads((tmp_path / "check_none.json").read_text())
    golden, loop = document["parts"]
    assert loop["error"] == "not done after 0 s"
    assert "Error" in golden["error"]
    said = capsys.readouterr().out
    assert "loop: failed after" in said and "golden: failed after" in said and len(said) < 2000


def test_parts_that_measure_nothing_run_side_by_side_where_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["kernels", "golden", "speed", "clip"]
    monkeypatch.setattr(apart, "usable_cores", lambda: 16)
    assert in_groups(names) == [["kernels", "golden"], ["speed"], ["clip"]]
    assert in_groups(["speed"]) == [["speed"]]
    monkeypatch.setattr(apart, "usable_cores", lambda: 2)
    assert in_groups(names) == [[name] for name in names]


def test_a_part_that_nothing_is_left_for_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run_apart", lambda *_: pytest.fail("there is no time for it"))
    arguments = ["--out", str(tmp_path), "--device", "cpu", "--only", "clip", "--seconds", "5"]
    assert command.main(arguments) == 0
    assert "| skipped | the 5 s were over |" in (tmp_path / "check_none.md").read_text()


def test_whoever_stops_the_check_gets_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (script := tmp_path / "part.py").write_text(
        "import pathlib, time\nprint('at work', flush=True)\n"
        f"pathlib.Path({str(tmp_path / 'slow.json')!r}).write_text('{{\"ms\": 1}}')\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(apart, "PARTS", {"slow": Part("none", 90, 90)})
    begun = apart.subprocess.Popen
    monkeypatch.setattr(apart.subprocess, "Popen", lambda words, **kept: begun([words[0], str(script)], **kept))

    def stop(_: float) -> None:
        if (tmp_path / "slow.json").is_file() and (tmp_path / "slow.json").read_text():
            raise KeyboardInterrupt

    monkeypatch.setattr(apart, "sleep", stop)
    results = run_apart(["slow"], Setting(ROOT), tmp_path)
    result = next(results)
    assert (result.error, result.found) == ("at work\nstopped from outside", {"ms": 1})
    with pytest.raises(KeyboardInterrupt):
        next(results)


def test_one_fault_does_not_end_a_part() -> None:
    found = Faults()
    with found.of("first"):
        raise CheckFailed("too slow")
    with found.of("second"):
        raise ZeroDivisionError("by zero")
    with pytest.raises(CheckFailed, match="^first: too slow; second: ZeroDivisionError: by zero$"):
        found.tell()
    with pytest.raises(Skipped), found.of("third"):
        raise Skipped("nothing there")


def test_what_is_wrong_and_not_finite_can_be_written_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(setting: Setting, record: Record) -> None:
        record("odd", {"largest": float("inf"), "of": np.float32(2.5), "all": np.bool_(True), "list": (float("nan"),)})
        raise CheckFailed("it is infinite")

    monkeypatch.setattr(apart, "import_module", lambda _: SimpleNamespace(check=check))
    with pytest.raises(CheckFailed):
        run_part("loop", Setting(ROOT), tmp_path / "loop.json")
    found = json.loads((tmp_path / "loop.json").read_text())
    assert found == {"odd": {"largest": "inf", "of": 2.5, "all": True, "list": ["nan"]}, "wrong": "it is infinite"}
    assert shown(found["odd"]) == "largest inf, of 2.500, all True, list nan"


def test_a_share_of_the_ceiling_is_operations_over_time() -> None:
    found = figures(0.1, 40_000_000_000_000, 640.0, 800.0)
    assert found == {"ms": 100.0, "tflops": 400.0, "share_of_ceiling": 0.625, "share_of_ceiling_before": 0.5}


def test_operations_are_counted_from_shapes_and_the_plain_network_has_more() -> None:
    networks, sizes = MINI.networks(), {"B": 1, "F": 2, "h": 8, "w": 8}
    exact, plain, longer = (
        count_flop(networks, {**sizes, "F": frames}, plain=plain)
        for frames, plain in ((2, False), (2, True), (4, False))
    )
    for kind in ("products", "attention"):
        assert 0 < exact[kind] < plain[kind]
    assert 0 < exact["convolutions"] == plain["convolutions"] == longer["convolutions"] / 2
    assert sum(longer.values()) > 1.9 * sum(exact.values())


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


def test_torchs_warning_of_a_wait_is_told_from_the_one_of_its_mode() -> None:
    assert is_warned_of(
        "called a synchronizing CUDA operation (Triggered internally at c10/cuda/CUDAFunctions.cpp:262.)"
    )
    assert not is_warned_of(
        "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing"
    )


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


def test_outcomes_are_read_while_pytest_speaks() -> None:
    said = """\
tests/a/test_x.py::test_one[3-a b] PASSED                                   [ 10%]
tests/a/test_x.py::test_two SKIPPED (needs more)                            [ 20%]
tests/a/test_x.py::test_three FAILED                                        [ 30%]
tests/a/test_x.py::test_four ERROR                                          [ 40%]
FAILED tests/a/test_x.py::test_three - assert 1 == 2
ERROR tests/a/test_x.py::test_four - OSError
ERROR tests/a/test_y.py - ModuleNotFoundError
=================== 1 failed, 1 passed, 1 skipped, 2 errors in 4.5s ===================
tests/a/test_x.py::test_five """
    assert [(test.split("::")[-1], outcome) for test, outcome in outcomes(said.splitlines())] == [
        ("test_one[3-a b]", "PASSED"),
        ("test_two", "SKIPPED"),
        ("test_three", "FAILED"),
        ("test_four", "ERROR"),
        ("tests/a/test_y.py", "ERROR"),
    ]


def test_a_gpu_test_that_fails_is_named_with_what_else_was_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\npytestmark = pytest.mark.gpu\ndef test_right(): pass\ndef test_wrong(): assert 1 == 2\n"
    )
    monkeypatch.setattr(kernels, "TESTS", ("test_it.py",))
    found = {}
    with pytest.raises(CheckFailed, match="^test_it.py::test_wrong FAILED$"):
        kernels.check(Setting(tmp_path), found.__setitem__)
    assert found["tests"] == {"passed": 1, "failed": 1, "skipped": 0, "errors": 0}
    assert found["failed_in_file"] == {"test_it.py": 1}


def test_a_file_that_cannot_be_read_and_a_crash_cost_no_other_gpu_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked = "import os, pytest\npytestmark = pytest.mark.gpu\n"
    (tmp_path / "test_broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "test_it.py").write_text(f"{marked}def test_right(): pass\n")
    (tmp_path / "test_last.py").write_text(f"{marked}def test_crash(): os._exit(9)\n")
    found = {}
    monkeypatch.setattr(kernels, "TESTS", ("test_broken.py", "test_it.py"))
    with pytest.raises(CheckFailed, match="^test_broken.py ERROR$"):
        kernels.check(Setting(tmp_path), found.__setitem__)
    assert found["tests"]["passed"] == 1 and found["failed_in_file"] == {"test_broken.py": 1}
    monkeypatch.setattr(kernels, "TESTS", ("test_it.py", "test_last.py"))
    with pytest.raises(CheckFailed, match="^pytest ended with 9: see the part's log$"):
        kernels.check(Setting(tmp_path), found.__setitem__)


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
        PartResult("speed", 12.3, "", {"memory_fp16": {"peak_allocated_mib": 100.0, "share": 0.5}}),
        PartResult("clip", 1.0, "Traceback\nValueError: no"),
    ]
    text = as_markdown(results, MACHINE, Setting(ROOT, "cuda"))
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
    written = write_results([], machine, Setting(ROOT, "cuda"), tmp_path)
    assert written.name == "check_h100_80gb_hbm3.md"
    assert written.read_text().startswith("GPU NVIDIA H100 80GB HBM3, 81559 MiB, 650 W, driver 580.1")
    monkeypatch.setattr(report, "gpu_status", lambda: replace(card, devices=(replace(card.devices[0], name="X"),)))
    assert describe_gpu()["gpu"] == "X" and "power_limit" not in describe_gpu()


def test_the_report_says_what_was_not_run_and_why() -> None:
    results = [PartResult("tensorrt", 0.1, found={"skipped": "tensorrt is not installed"})]
    text = as_markdown(results, MACHINE, Setting(ROOT, "cuda"))
    assert "| tensorrt | not run | 0.1" in text and "| skipped | tensorrt is not installed |" in text
    assert "| compiled | not run: --compile asks for it |" in text and "| clip | not run |" in text
    assert "| full_tensorrt | not run: --bundle asks for it |" in text
    assert PartResult("waits", 1.0, found={"skipped": "the decoder", "waits": {}}).outcome == "passed"


def test_a_report_that_cannot_be_put_in_words_costs_no_figures(tmp_path: Path) -> None:
    results = [PartResult("speed", 1.0, found={"times_faster_than_x": {"not": "a number"}})]
    written = write_results(results, MACHINE, Setting(ROOT, "cuda"), tmp_path)
    assert "TypeError" in written.read_text()
    assert json.loads(written.with_suffix(".json").read_text())["parts"][0]["name"] == "speed"


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<...>>", "attention"),
        ("fmha_cutlassF_f16_aligned_64x64_rf_sm80", "attention"),
        ("temporal_attention", "attention over frames, ours"),
        ("void (anonymous namespace)::softmax_warp_forward<...>", "other"),
        ("add_rows", "norms and element-wise, ours"),
        ("layer_norm", "norms and element-wise, ours"),
        ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::Half, float, false>", "norms"),
        ("void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<c10::Half>", "norms"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize256x128x64_cudnn", "convolutions"),
        ("nvjet_sm90_hsh_168x128_64x5_1x2_h_bz_coopA_bias_TNN", "matrix products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, __half>", "matrix products"),
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda>", "copies and changes of layout"),
        ("Memcpy DtoD (Device -> Device)", "copies and changes of layout"),
        ("void cudnn::ops::nchwToNhwcKernel<__half, __half>", "copies and changes of layout"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::Half>>", "element-wise"),
        ("triton_poi_fused_add_mul_3", "made by torch.compile"),
    ],
)
def test_what_a_kernel_does_is_known_by_its_name(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_our_kernels_are_known_by_their_names() -> None:
    pytest.importorskip("triton", reason="needs Triton, which there is for Linux")
    from vexpress_trt.export.nets.fused import programs

    named = {name for name, program in vars(programs).items() if hasattr(program, "fn") and not name.startswith("_")}
    assert named == OURS | {"temporal_attention"}


def test_the_time_of_a_call_is_told_by_kind_with_the_rate_of_what_is_counted() -> None:
    kernels = [("nvjet_a", 20.0, 5), ("add_rows", 10.0, 7), ("nvjet_b", 10.0, 5)]
    found = by_kind(kernels, {"products": 30_000_000_000_000, "convolutions": 0, "attention": 0})
    assert found == {
        "matrix products": {"ms": 30.0, "launches": 10, "share": 0.75, "tflops": pytest.approx(1000.0)},
        "norms and element-wise, ours": {"ms": 10.0, "launches": 7, "share": 0.25},
    }
    assert list(found)[0] == "matrix products"


def test_the_last_words_fit_a_screen_and_have_the_aims_figures() -> None:
    products = {"matrix products": {"ms": 30.0, "launches": 10, "tflops": 700.0}}
    small = {f"kind {number}": {"ms": 1.0, "launches": 1} for number in range(8)}
    speed = {
        "ceiling_fp16_tflops": {"before": 742.0, "in_turns": 700.0},
        "exact captured, fp16": {
            "ms": 140.0, "tflops": 399.0, "share_of_ceiling": 0.57, "share_of_ceiling_before": 0.538,
        },
        "times_faster_than_original's way, eager": 1.86,
        "kernels": {"total_ms": 40.0, "kinds": products | small},
        "kernels_unfused": {"total_ms": 240.0, "kinds": products | {"norms": {"ms": 26.0, "launches": 209}}},
    }  # fmt: skip
    growth = {"memory_growth_mib": 0.0}
    results = [
        PartResult("kernels", 1.0, found={"tests": {"passed": 7, "failed": 1}}),
        PartResult("golden", 1.0, found={"a": {"agrees": True}, "b": {"agrees": False}, "skipped": "vae"}),
        PartResult("speed", 1.0, "x" * 5000, speed),
        PartResult("waits", 1.0, found={"waits_per_call": 0.0, "memory": {"watched_over_frames": 542, **growth}}),
        PartResult(
            "generate",
            1.0,
            found={
                "fp32": {"psnr_to_the_cpu_db": "inf"},
                "a long clip": {"frames_per_second": 99.0, "frames": 1500, **growth},
            },
        ),
        PartResult("clip", 1.0, found={"loop_ms_per_call": 150.0}),
    ]
    said = last_words(results)
    assert len(said) < 3000
    for row in (
        "| GPU tests | 7 passed, 1 failed |",
        "| graphs that give the golden arrays | 1 of 2 |",
        "| call, exact captured, fp16 | 140.0 ms, 399 TFLOP/s, 57.0% of the ceiling (53.8% of the cool one) |",
        "| faster than original's way, eager | 1.86 times |",
        "| waits in a call | 0 |",
        "| memory that a loop gains | 0 MiB over 542 frames |",
        "| clip of the model in the box, fp32 | inf dB from the CPU's |",
        "| a long clip | 99.0 frames/s, 0 MiB over 1500 frames |",
        "| full-size loop, a call | 150.0 ms |",
        "| matrix products | 30.0 ms in 10, 700 TFLOP/s | 30.0 ms in 10, 700 TFLOP/s |",
        "| norms |  | 26.0 ms in 209 |",
        "| together | 40.00 ms | 240.0 ms |",
    ):
        assert row in said
    assert last_words([]) == ""


def test_memory_that_grows_is_told_from_what_is_allocated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for seen, growth in (([100, 300, *[300] * 8], 0), ([*range(100, 180, 10), 180], 70), ([], 0)):
        watch, left = MemoryWatch(), iter(map(float, seen))
        monkeypatch.setattr(memory, "used_mib", lambda left=left: next(left))
        for _ in seen:
            watch.look()
        assert watch.growth == growth
        assert watch.found()["memory_in_use_mib"] == seen


def test_other_work_on_the_machine_is_told() -> None:
    busy = subprocess.Popen(
        [sys.executable, "-c", "import os\nos.nice(19)\nprint(flush=True)\nwhile True: pass"], stdout=-1
    )
    try:
        busy.stdout.read(1)
        looks = (surroundings.other_work(1.0) for _ in range(30))  # beside other work it may have to wait for its turn
        found = next(found for found in looks if found["of_idle_priority"])
    finally:
        busy.kill()
        busy.communicate()
    assert found["busy_processes"] >= found["of_idle_priority"] >= 1 and found["cores"] > 0.2


@pytest.mark.skipif(not gpu_status().reason, reason="this machine has a GPU")
def test_without_a_gpu_the_check_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command.main(["--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("gpu_check: error: ") and said.err.count("\n") == 1 and not said.out


@pytest.mark.skipif(not gpu_status().reason, reason="this machine has a GPU")
def test_without_a_gpu_tensorrt_is_not_run_and_says_why(tmp_path: Path) -> None:
    (result,) = run_apart(["tensorrt"], Setting(ROOT, "cuda", quick=True), tmp_path)
    assert (result.error, result.outcome) == ("", "not run")
    assert "tensorrt" in result.found["skipped"]


def test_what_an_earlier_run_found_is_not_told_again(tmp_path: Path) -> None:
    (tmp_path / "speed.json").write_text('{"ms": 1}', encoding="utf-8")
    (result,) = run_apart(["speed"], Setting(ROOT, "no such device"), tmp_path)
    assert result.error
    assert "ms" not in result.found


def test_a_part_is_ended_with_all_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive = tmp_path / "alive"
    grandchild = f"import time, pathlib; time.sleep(3); pathlib.Path({str(alive)!r}).touch()"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    monkeypatch.setattr(apart, "PARTS", {"slow": Part("none", 1, 1)})
    original = apart.subprocess.Popen
    monkeypatch.setattr(apart.subprocess, "Popen", lambda command, **kept: original([command[0], "-c", child], **kept))
    (result,) = run_apart(["slow"], Setting(ROOT), tmp_path)
    assert result.error == "not done after 1 s"
    time.sleep(3)
    assert not alive.exists()
