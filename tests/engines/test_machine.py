"""What the processor can do and how many cores are ours; what the driver says."""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from vexpress_trt.engines import cpu as cpu_module
from vexpress_trt.engines import gpu as gpu_module
from vexpress_trt.engines.cpu import Cpu, cpu, usable_cores
from vexpress_trt.engines.gpu import GpuStatus, gpu_status
from vexpress_trt.engines.memory import available_memory


@pytest.fixture(autouse=True)
def asked_anew():
    cpu.cache_clear()
    gpu_status.cache_clear()
    yield
    cpu.cache_clear()
    gpu_status.cache_clear()


def _read(monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    def read_text(path: Path, *args, **kwargs) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(cpu_module.Path, "read_text", read_text)


def test_model_and_instruction_sets_come_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    _read(monkeypatch, {"/proc/cpuinfo": "model name\t: Xeon 9\nflags\t\t: fpu avx2 amx_tile amx_bf16 sse\n"})
    assert cpu() == Cpu("Xeon 9", ("avx2", "amx_tile", "amx_bf16"))
    assert cpu().bf16_unit == "AMX"


@pytest.mark.parametrize(("flags", "unit"), [("avx512f avx512_bf16", "AVX-512"), ("avx512f amx_tile", ""), ("", "")])
def test_what_multiplies_bfloat16(monkeypatch: pytest.MonkeyPatch, flags: str, unit: str) -> None:
    _read(monkeypatch, {"/proc/cpuinfo": f"flags\t\t: fpu {flags}\n"})
    assert cpu().bf16_unit == unit
    assert cpu().fastest_dtype == ("bf16" if unit else "fp32")


def test_a_system_that_does_not_tell_has_no_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    _read(monkeypatch, {})
    assert cpu().flags == ()
    assert cpu().bf16_unit == ""


@pytest.mark.parametrize(
    ("allowed", "logical", "physical", "files", "cores"),
    [
        (8, 8, 8, {}, 8),
        (8, 8, 4, {}, 4),  # two threads a core
        (3, 8, 4, {}, 3),  # an affinity mask may name one thread of each core
        (6, 8, 4, {}, 4),
        (8, 8, 8, {"/sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        (8, 8, 8, {"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (8, 8, 8, {"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        (
            8,
            8,
            8,
            {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            3,
        ),
        (8, 8, 8, {"/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_cores_are_physical_allowed_and_within_the_quota(monkeypatch, allowed, logical, physical, files, cores) -> None:
    _read(monkeypatch, files)
    monkeypatch.setattr(cpu_module.os, "sched_getaffinity", lambda pid: set(range(allowed)), raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: count[logical])
    count = {True: logical, False: physical}
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 5000),
        ({"memory.max": "max\n", "memory.current": "900\n", "memory.stat": "inactive_file 50\n"}, 5000),
        ({"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": "active_file 7\ninactive_file 50\n"}, 150),
        ({"memory.max": "9000\n", "memory.current": "900\n", "memory.stat": "inactive_file 50\n"}, 5000),
        ({"memory.max": "1000\n", "memory.current": "1100\n", "memory.stat": "inactive_file 50\n"}, 0),
        (
            {
                "memory/memory.limit_in_bytes": "1000\n",
                "memory/memory.usage_in_bytes": "900\n",
                "memory/memory.stat": "inactive_file 3\ntotal_inactive_file 50\n",
            },
            150,
        ),
    ],
)
def test_memory_is_the_machines_and_within_the_containers_limit(monkeypatch, files, available) -> None:
    _read(monkeypatch, {f"/sys/fs/cgroup/{name}": text for name, text in files.items()})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=5000))
    assert available_memory() == available


def test_without_a_driver_there_is_a_reason_and_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(gpu_module.ctypes, "CDLL", absent)
    assert gpu_status() == GpuStatus(None, (), "no NVIDIA driver")


class Driver:
    """libcuda's answers for some number of GPUs."""

    def __init__(self, count: int, start: int = 0):
        self.count, self.start = count, start

    def cuInit(self, flags):  # noqa: N802
        return self.start

    def cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = 12080
        return 0

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, handle, index):  # noqa: N802
        handle._obj.value = index
        return 0

    def cuDeviceGetName(self, name, size, handle):  # noqa: N802
        name.value = f"GPU {handle.value}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory, handle):  # noqa: N802
        memory._obj.value = 80 << 30
        return 0

    def cuDeviceGetAttribute(self, value, attribute, handle):  # noqa: N802
        value._obj.value = {75: 9, 76: 0}[attribute]
        return 0


def test_devices_are_as_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(2))
    status = gpu_status()
    assert (status.cuda, status.reason) == ("12.8", "")
    assert [(gpu.index, gpu.name, gpu.memory >> 30, gpu.capability) for gpu in status.devices] == [
        (0, "GPU 0", 80, (9, 0)), (1, "GPU 1", 80, (9, 0)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (Driver(0), "the NVIDIA driver sees no GPU"),
        (Driver(1, 100), "the NVIDIA driver does not start (CUDA error 100)"),
    ],
)
def test_a_driver_without_devices_says_why(monkeypatch: pytest.MonkeyPatch, driver: Driver, reason: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert gpu_status() == GpuStatus("12.8", (), reason)
