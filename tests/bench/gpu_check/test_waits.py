"""Calls that let the host wait, as the GPU check knows and counts them."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

from vexpress_trt.bench.gpu_check.waits import counted_driver_calls, is_wait, is_warned_of
from vexpress_trt.engines.driver import Driver
from vexpress_trt.runtime.cuda.gpu import GpuBuffer, GpuDevice


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
