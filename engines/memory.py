"""The process's peak resident memory."""

import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


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
