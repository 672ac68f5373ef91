"""NVIDIA GPUs as the driver reports them, asked through libcuda without any CUDA package."""

import ctypes
import sys
from dataclasses import dataclass
from functools import lru_cache

_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True)
class Gpu:
    """One device: `memory` in bytes, `capability` as (major, minor)."""

    index: int
    name: str
    memory: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class GpuStatus:
    """`cuda` is the highest CUDA version the driver supports, as "13.0", or None without a driver.

    `reason` says why there are no devices; it is "" where there are some.
    """

    cuda: str | None
    devices: tuple[Gpu, ...]
    reason: str


@lru_cache(maxsize=1)
def gpu_status() -> GpuStatus:
    """Ask the driver once per process. Never raises."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return GpuStatus(None, (), "no NVIDIA driver")
    version = ctypes.c_int()
    code = driver.cuInit(0)
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    count = ctypes.c_int()
    if code or driver.cuDeviceGetCount(ctypes.byref(count)):
        return GpuStatus(cuda, (), f"the NVIDIA driver does not start (CUDA error {code})")
    devices = tuple(_device(driver, index) for index in range(count.value))
    return GpuStatus(cuda, devices, "" if devices else "the NVIDIA driver sees no GPU")


def _device(driver: ctypes.CDLL, index: int) -> Gpu:
    handle, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(handle), index)
    driver.cuDeviceGetName(name, len(name), handle)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    capability = []
    for attribute in (_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        capability.append(value.value)
    return Gpu(index, name.value.decode(errors="replace"), memory.value, (capability[0], capability[1]))
