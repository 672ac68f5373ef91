"""What this processor can do and how much of it this process may use."""

import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_INTERESTING = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "neon", "asimd")


@dataclass(frozen=True)
class Cpu:
    """`flags` are the instruction sets that matter for inference; empty where the system does not tell."""

    model: str
    flags: tuple[str, ...]

    @property
    def bf16_unit(self) -> str:
        """What multiplies bfloat16 in hardware: "AMX" (matrix tiles), "AVX-512", or "" where nothing does."""
        if {"amx_tile", "amx_bf16"} <= set(self.flags):
            return "AMX"
        return "AVX-512" if "avx512_bf16" in self.flags else ""

    @property
    def fastest_dtype(self) -> str:
        """The type that OpenVINO computes in unless it is told."""
        return "bf16" if self.bf16_unit else "fp32"


@lru_cache(maxsize=1)
def cpu() -> Cpu:
    """Model name and instruction sets, from the system's own listing."""
    model, flags = platform.processor() or platform.machine(), set()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return Cpu(model, ())
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        if key.strip() in ("flags", "Features"):
            flags |= set(value.split())
            break
    return Cpu(model, tuple(flag for flag in _INTERESTING if flag in flags))


def usable_cores() -> int:
    """Physical cores this process may use: within its affinity mask and its container's CPU quota, at least 1."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:
        allowed = os.cpu_count() or 1
    import psutil

    logical, physical = psutil.cpu_count(logical=True) or allowed, psutil.cpu_count(logical=False) or allowed
    threads_per_core = max(1, logical // physical)
    cores = max(1, allowed // threads_per_core) if allowed == logical else min(allowed, physical)
    quota = _container_quota()
    return max(1, min(cores, quota)) if quota else cores


def _container_quota() -> int | None:
    """Whole CPUs granted by the control group (v2, then v1); None where there is no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return None if quota <= 0 else max(1, quota // int((folder / "cpu.cfs_period_us").read_text()))
    except (OSError, ValueError, ZeroDivisionError):
        return None
