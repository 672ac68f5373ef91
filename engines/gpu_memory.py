"""What this process has of a GPU's memory, as the driver counts it: by process where NVML tells, else by what is gone.

NVML comes with the driver and is asked without any package, as in `engines.gpu`.
"""

import ctypes
import os
import uuid
from typing import Self

from vexpress_trt.engines.driver import Driver, driver
from vexpress_trt.engines.errors import UserError

_BARE_CONTEXT = 400 << 20  # about what CUDA's context takes, which is there before anything can be asked
_MOST_PROCESSES = 256
_UNKNOWN = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE


class _Process(ctypes.Structure):
    """nvmlProcessInfo_t of nvml.h."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class GpuMemory:
    """The bytes of a GPU's memory that this process has.

    `exact`: they are the process's own. Else they are what has gone of the free memory since this was made, other
    programs' included, and an allowance for CUDA's context.
    """

    def __init__(self, gpu: Driver) -> None:
        self._gpu = gpu
        self._nvml, self._handle = _handle(gpu)
        self._free = self._free_now()
        self.exact = self._own() is not None

    @classmethod
    def of(cls, gpu: int) -> Self | None:
        """That of the GPU of this number, or None where there is no driver to ask."""
        try:
            return cls(driver(gpu))
        except (UserError, RuntimeError):
            return None

    def used(self) -> int:
        own = self._own() if self.exact else None
        return own if own is not None else max(0, self._free - self._free_now()) + _BARE_CONTEXT

    def _free_now(self) -> int:
        with self._gpu.current():
            return self._gpu.mem_get_info()[0]

    def _own(self) -> int | None:
        """As NVML counts; None where it does not tell, or counts by numbers of processes that are not those here."""
        if self._nvml is None:
            return None
        count, processes = ctypes.c_uint(_MOST_PROCESSES), (_Process * _MOST_PROCESSES)()
        if self._nvml.nvmlDeviceGetComputeRunningProcesses_v3(self._handle, ctypes.byref(count), processes):
            return None
        return next((p.used for p in processes[: count.value] if p.pid == os.getpid() and p.used != _UNKNOWN), None)


def _handle(gpu: Driver) -> tuple[ctypes.CDLL | None, ctypes.c_void_p]:
    """NVML and its handle of a GPU, or None."""
    handle = ctypes.c_void_p()
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        named = uuid.UUID(bytes=bytes(gpu.call("cuDeviceGetUuid", gpu.device).bytes))
        code = nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(f"GPU-{named}".encode(), ctypes.byref(handle))
        found = code == 0 and hasattr(nvml, "nvmlDeviceGetComputeRunningProcesses_v3")
    except (OSError, AttributeError, UserError, RuntimeError, ValueError):
        return None, handle
    return (nvml if found else None), handle
