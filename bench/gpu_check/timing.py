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


def matmul_ceiling(device: str, dtype: torch.dtype, *, size: int, repeats: int = 20) -> float:
    """TFLOP/s of the median product of two random square matrices."""
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(one)
    seconds = in_turns({"matmul": lambda: torch.mm(one, other, out=out)}, device, rounds=repeats)
    return 2 * size**3 / seconds["matmul"] / 1e12


def memory_bandwidth(device: str, *, mib: int, repeats: int = 20) -> float:
    """GB/s, read and written, of the median copy of so many MiB."""
    source = torch.ones(mib << 20, dtype=torch.uint8, device=device)
    out = torch.empty_like(source)
    seconds = in_turns({"copy": lambda: out.copy_(source)}, device, rounds=repeats)
    return 2 * len(source) / seconds["copy"] / 1e9
