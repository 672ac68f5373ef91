"""The GPU's memory, looked at between stages: the most that a clip had, and a word where that was too much."""

import logging
import threading

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu_memory import GpuMemory
from vexpress_trt.runtime.cuda.budget import gib

log = logging.getLogger("vexpress")


class MemoryWatch:
    """`peak`: bytes, the most that was seen; None before the first look and where there is no driver to ask."""

    def __init__(self, gpu: int, budget: int | None) -> None:
        """`budget`: bytes that are allowed, or None."""
        self._lock = threading.Lock()
        self._memory = GpuMemory.of(gpu)
        self._budget = budget
        self._warned = False
        self.peak: int | None = None

    def look(self) -> None:
        """Warns, once, where there is more than the budget. May be called from any thread."""
        try:
            used = self._memory.used() if self._memory is not None else None
        except UserError:  # after a fault the driver answers nothing, and who meets it first tells
            return
        if used is None:
            return
        with self._lock:
            self.peak = max(used, self.peak or 0)
            exceeded = self._budget is not None and used > self._budget and not self._warned
            self._warned |= exceeded
        if exceeded:
            whose = "" if self._memory.exact else ", by what is gone of its free memory"
            log.warning(
                "--gpu_memory is exceeded: this process has %s on the GPU%s, %s were allowed",
                gib(used),
                whose,
                gib(self._budget),
            )
