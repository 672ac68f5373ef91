"""What this process has of a GPU's memory: as NVML counts it, else what is gone of the free memory."""

from types import SimpleNamespace

import pytest

from vexpress_trt.engines import gpu_memory
from vexpress_trt.engines.gpu_memory import GpuMemory

GIB = 1 << 30


class Card:
    """A GPU of 8 GiB whose driver counts free memory only."""

    device = 0
    free = 6 * GIB

    def current(self) -> "Card":
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *about: object) -> None: ...

    def mem_get_info(self) -> tuple[int, int]:
        return self.free, 8 * GIB

    def call(self, function: str, device: int) -> SimpleNamespace:
        assert (function, device) == ("cuDeviceGetUuid", 0)
        return SimpleNamespace(bytes=bytes(range(16)))


def test_without_nvml_what_is_gone_of_the_free_memory_counts() -> None:
    card = Card()
    memory = GpuMemory(card)
    assert not memory.exact and memory.used() == gpu_memory._BARE_CONTEXT
    card.free -= GIB
    assert memory.used() == GIB + gpu_memory._BARE_CONTEXT


class Nvml:
    """NVML with the processes of one GPU: {number: bytes}."""

    def __init__(self, processes: dict[int, int]) -> None:
        self.processes = processes

    def nvmlInit_v2(self) -> int:  # noqa: N802
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: object) -> int:  # noqa: N802
        assert uuid == b"GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
        return 0

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: object, count: object, rows: object) -> int:  # noqa: N802
        count._obj.value = len(self.processes)
        for row, (number, size) in zip(rows, self.processes.items(), strict=False):
            row.pid, row.used = number, size
        return 0


def test_with_nvml_the_processs_own_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = Nvml({1: 5 * GIB, 4711: GIB})
    monkeypatch.setattr(gpu_memory.ctypes, "CDLL", lambda name: nvml)
    monkeypatch.setattr(gpu_memory.os, "getpid", lambda: 4711)
    memory = GpuMemory(Card())
    assert memory.exact and memory.used() == GIB
    nvml.processes[4711] = 2 * GIB
    assert memory.used() == 2 * GIB
    monkeypatch.setattr(gpu_memory.os, "getpid", lambda: 4712)  # a container counts its processes anew
    assert not GpuMemory(Card()).exact
