"""Whether the host ever waits for the GPU inside the loop, how far the GPU idles, and whether its memory stays flat."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from time import perf_counter
from typing import Any
from unittest import mock

import torch

from vexpress_trt.bench.gpu_check.around import NO_DECODER, decoder_on, features_on
from vexpress_trt.bench.gpu_check.jobs import Clip, Denoisers, device_loop
from vexpress_trt.bench.gpu_check.memory import GROWTH_MIB, MemoryWatch
from vexpress_trt.bench.gpu_check.networks import MINI
from vexpress_trt.bench.gpu_check.parts import CheckFailed, Faults, Record, Setting
from vexpress_trt.engines.driver import Driver
from vexpress_trt.runtime.windows import WindowPlan

WARM, COUNTED = 90, 200  # calls; the first frames are decoded, and the decoder captured, after 55


def check(setting: Setting, record: Record) -> None:
    """Raises CheckFailed where a call of the steady state synchronises, or where memory grows with the clip."""
    on_cpu = setting.device == "cpu"
    clip = Clip(WindowPlan(4, 1, 2) if on_cpu else WindowPlan(8, 2, 90), steps=2 if on_cpu else 10, side=8)
    precision = "fp32" if on_cpu else "fp16"
    denoisers = Denoisers(MINI.networks(), clip, device=setting.device, precision=precision)
    decoder = decoder_on(MINI, clip, setting.device, precision)
    if decoder is None:
        record("skipped", NO_DECODER)
    features = features_on(MINI, clip, setting.device, precision)
    loop = device_loop(clip, denoisers, features=features, decoder=decoder)
    if on_cpu:
        record("calls", sum(1 for calls, _ in loop if calls))
        return
    for _ in islice(loop, WARM):
        pass
    faults = Faults()
    with counted_driver_calls() as driver_calls, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        runtime_calls = profiled(lambda: counted(loop))
    waits = {name: count for name, count in (driver_calls + runtime_calls).items() if is_wait(name)}
    waits_of_torch = sum(is_warned_of(str(warning.message)) for warning in warned)
    record("calls_counted", COUNTED)
    record("waits", waits)
    record("waits_that_torch_warns_of", waits_of_torch)
    record("waits_per_call", max(sum(waits.values()), waits_of_torch) / COUNTED)
    record("driver_calls", dict(driver_calls.most_common(12)))
    record("runtime_calls", dict(runtime_calls.most_common(12)))
    with faults.of("waits"):
        if waits or waits_of_torch:
            raise CheckFailed(
                f"the host waits inside the loop: {waits}, and by torch's warnings {waits_of_torch} times"
            )
    began, done, memory = perf_counter(), 0, MemoryWatch()  # after the profiler has taken its own
    for done, _ in enumerate(loop, 1):
        if done % 25 == 0:
            memory.look()
    record("loop_ms_per_call_small", (perf_counter() - began) / max(1, done) * 1e3)
    record("memory", {"watched_over_frames": clip.plan.frames, **memory.found()})
    with faults.of("memory"):
        if memory.growth > GROWTH_MIB:
            raise CheckFailed(f"the GPU's memory grows by {memory.growth:.0f} MiB over a clip")
    faults.tell()


def counted(loop: Iterator[Any]) -> None:
    """The calls that are looked at, features and images among them; torch warns where it synchronises."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        for _ in islice(loop, COUNTED):
            pass
    finally:
        torch.cuda.set_sync_debug_mode("default")


def is_wait(name: str) -> bool:
    """Whether a CUDA call of this name lets the host wait for the device."""
    synchronous = name.startswith(("cudaMemcpy", "cuMemcpy", "cudaMemset", "cuMemset")) and "Async" not in name
    return "Synchronize" in name or synchronous


def is_warned_of(warning: str) -> bool:
    """Whether torch warns of a wait, not of the mode in which it does."""
    return "called a synchronizing" in warning


def profiled(work: Callable[[], Any]) -> Counter[str]:
    """How often the CUDA runtime's functions were called, by torch or its libraries."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled_by_torch

    with profiled_by_torch(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        work()
    calls = Counter[str]()
    for event in recorded.events():
        if event.name.startswith(("cuda", "cu")) and not event.name.startswith(("cudnn", "cublas", "cutlass")):
            calls[event.name] += 1
    calls["cudaDeviceSynchronize"] -= min(calls["cudaDeviceSynchronize"], 2)  # the profiler's own, at both ends
    return +calls


@contextmanager
def counted_driver_calls() -> Iterator[Counter[str]]:
    """Count the driver's functions that the loop calls by itself."""
    calls, plain = Counter[str](), Driver.call

    def counting(driver: Driver, function: str, *given: Any) -> Any:
        calls[function] += 1
        return plain(driver, function, *given)

    with mock.patch.object(Driver, "call", counting):
        yield calls
