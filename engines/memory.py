"""The process's peak resident memory, and what it may still take."""

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_GROUPS = (  # a container's control group, v2 and v1: limit, use, and what of the latter is file cache to be dropped
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def peak_memory_mib() -> float:
    """The peak resident set in MiB, since `reset_peak` where that works, else since the process began.

    0 where the system does not tell.
    """
    try:
        return int(_STATUS.read_text().split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def reset_peak() -> bool:
    """Start a new measurement of the peak; False where the system cannot (anything but Linux)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def available_memory() -> int:
    """Bytes that this process may still take without swapping: of the machine, and within its container's limit."""
    import psutil

    return min(psutil.virtual_memory().available, *(_left_in(*group) for group in _GROUPS))


def _left_in(limit: str, use: str, stat: str, cache: str) -> float:
    """What a control group leaves; infinite where there is none or no limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        left = int((folder / limit).read_text()) - int((folder / use).read_text())
        return max(0, left + int((folder / stat).read_text().split(f"{cache} ")[1].split()[0]))
    except (OSError, ValueError, IndexError):
        return float("inf")
