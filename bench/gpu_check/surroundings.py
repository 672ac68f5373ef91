"""What a measurement depends on besides the program: the GPU's clocks and heat, and other work on the machine."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from time import sleep
from typing import Any

import psutil

_STATE = {
    "clocks.sm": "clock",
    "clocks.mem": "memory_clock",
    "power.draw": "power",
    "temperature.gpu": "celsius",
    "utilization.gpu": "busy",
}
_BUSY = 0.2  # of a core, from which on a process counts


def ask_nvidia_smi(name: str, asked: Mapping[str, str]) -> dict[str, str]:
    """{our name: value} of the first GPU called `name`, for {nvidia-smi's name: ours}; it also lists those that
    CUDA_VISIBLE_DEVICES hides. Empty where the tool is not there or does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={','.join(['name', *asked])}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    rows = [[value.strip() for value in line.split(",")] for line in done.stdout.splitlines()]
    return next((dict(zip(asked.values(), row[1:], strict=False)) for row in rows if row[0] == name), {})


def gpu_state(name: str) -> dict[str, str]:
    """Clocks, power, temperature and load of the GPU of this name at the moment, with their units."""
    return ask_nvidia_smi(name, _STATE)


def other_work(seconds: float = 0.5) -> dict[str, Any]:
    """What else keeps the machine's cores busy: the load and, over some seconds, processes that are not this one's."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    watched = [process for process in psutil.process_iter() if process.pid not in own]
    _shares(watched)
    sleep(seconds)
    busy = {process.pid: share for process, share in zip(watched, _shares(watched), strict=True) if share > _BUSY}
    return {
        "load": round(os.getloadavg()[0], 1),
        "busy_processes": len(busy),
        "cores": round(sum(busy.values()), 1),
        "of_idle_priority": sum(map(_is_idle, busy)),
    }


def _shares(processes: list[psutil.Process]) -> list[float]:
    """Cores that each has used since it was last asked for."""

    def share(process: psutil.Process) -> float:
        try:
            return process.cpu_percent() / 100
        except psutil.Error:  # it is gone
            return 0.0

    return [share(process) for process in processes]


def _is_idle(pid: int) -> bool:
    try:
        return os.sched_getscheduler(pid) == os.SCHED_IDLE or os.getpriority(os.PRIO_PROCESS, pid) >= 19
    except (OSError, AttributeError):  # it is gone, or the system knows no such thing
        return False
