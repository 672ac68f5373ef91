"""Times of enqueued work, as the device sees them."""

from collections.abc import Callable, Mapping
from statistics import median
from time import perf_counter

import torch


def once(work: Callable[[], object], device: str) -> float:
    """Seconds of one run of `work`, which enqueues on the current stream."""
    if device == "cpu":
        began = perf_counter()
        work()
        return perf_counter() - began
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began.record()
    work()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1000


def in_turns(contenders: Mapping[str, Callable[[], object]], device: str, *, rounds: int) -> dict[str, float]:
    """{name: median seconds}: all run once for warmth, then one after the other in every round."""
    for work in contenders.values():
        once(work, device)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, work in contenders.items():
            seconds[name].append(once(work, device))
    return {name: median(values) for name, values in seconds.items()}


class MatmulCeiling:
    """Products of two random square matrices, one after the other: what the GPU's matrix units do at most."""

    def __init__(self, device: str, dtype: torch.dtype, *, size: int, count: int = 20) -> None:
        self._device, self._count = device, count
        self._one, self._other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        self._out = torch.empty_like(self._one)

    def __call__(self) -> None:
        for _ in range(self._count):
            torch.mm(self._one, self._other, out=self._out)

    def rate(self, seconds: float) -> float:
        """TFLOP/s where all products take so long."""
        return 2 * len(self._one) ** 3 * self._count / seconds / 1e12

    def measured(self) -> float:
        """TFLOP/s of the median of some rounds by itself."""
        return self.rate(in_turns({"": self}, self._device, rounds=5)[""])


def memory_bandwidth(device: str, *, mib: int, repeats: int = 20) -> float:
    """GB/s, read and written, of the median copy of so many MiB."""
    source = torch.ones(mib << 20, dtype=torch.uint8, device=device)
    out = torch.empty_like(source)
    seconds = in_turns({"copy": lambda: out.copy_(source)}, device, rounds=repeats)
    return 2 * len(source) / seconds["copy"] / 1e9
