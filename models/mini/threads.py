"""As many threads as there are idle cores: one that waits for a busy core slows all the others down."""

import os
import time

import psutil
import torch

_EVERY = 10.0  # seconds


class Threads:
    """Follows what other processes leave free, up to `limit` threads; call `adapt` once per step."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._process = psutil.Process()
        self._cores = os.cpu_count() or 1
        self._since, self._own = time.monotonic(), self._used()
        psutil.cpu_percent()  # the first call only starts the measurement

    def adapt(self) -> None:
        elapsed = time.monotonic() - self._since
        if elapsed < _EVERY:
            return
        own = self._used()
        others = self._cores * psutil.cpu_percent() / 100 - (own - self._own) / elapsed
        torch.set_num_threads(threads_beside(others, self._cores, self._limit))
        self._since, self._own = time.monotonic(), own

    def _used(self) -> float:
        """Seconds of all cores that this process has used."""
        times = self._process.cpu_times()
        return times.user + times.system


def threads_beside(others: float, cores: int, limit: int) -> int:
    """Threads to use while other processes keep `others` cores busy."""
    return max(1, min(limit, round(cores - others)))
