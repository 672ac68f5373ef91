"""What is on the GPU is looked at between stages, and a budget is never exceeded without a word."""

from types import SimpleNamespace

import pytest

from vexpress_trt.engines import gpu_memory
from vexpress_trt.engines.gpu_memory import GpuMemory
from vexpress_trt.runtime.cuda import memory_watch
from vexpress_trt.runtime.cuda.memory_watch import MemoryWatch

GIB = 1 << 30


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the next looks will find."""
    sizes: list[int] = []
    memory = SimpleNamespace(used=lambda: sizes.pop(0), exact=True)
    monkeypatch.setattr(memory_watch.GpuMemory, "of", lambda gpu: memory)
    return sizes


def test_the_most_that_was_seen_is_the_peak(seen: list[int], caplog: pytest.LogCaptureFixture) -> None:
    watch = MemoryWatch(0, None)
    assert watch.peak is None
    seen += [GIB, 3 * GIB, 2 * GIB]
    for _ in range(3):
        watch.look()
    assert watch.peak == 3 * GIB and not caplog.text


def test_more_than_the_budget_is_told_once_with_both_figures(seen: list[int], caplog: pytest.LogCaptureFixture) -> None:
    watch = MemoryWatch(0, 2 * GIB)
    seen += [2 * GIB, 3 * GIB, 4 * GIB]
    watch.look()
    assert not caplog.text
    watch.look()
    watch.look()
    assert [record.getMessage() for record in caplog.records] == [
        "--gpu_memory is exceeded: this process has 3.0 GiB on the GPU, 2.0 GiB were allowed"
    ]


def test_where_there_is_no_driver_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_watch.GpuMemory, "of", lambda gpu: None)
    watch = MemoryWatch(0, GIB)
    watch.look()
    assert watch.peak is None


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
