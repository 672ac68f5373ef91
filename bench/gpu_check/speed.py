"""One denoiser call at full size: milliseconds, the share of the matmul ceiling, unfused and the original's way beside.

"exact" is what the engine takes: the exact savings in the fused form.
"""

from collections.abc import Callable
from contextlib import nullcontext
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from vexpress_trt.bench.gpu_check.golden import signal_to_noise
from vexpress_trt.bench.gpu_check.networks import (
    TORCH,
    all_finite,
    arguments,
    denoiser,
    denoiser_spec,
    engine_on,
    model_for,
    random_inputs,
    randomised,
)
from vexpress_trt.bench.gpu_check.parts import CheckFailed, Record, Setting
from vexpress_trt.bench.gpu_check.shapes import count_bytes, count_flop
from vexpress_trt.bench.gpu_check.timing import in_turns, matmul_ceiling, memory_bandwidth
from vexpress_trt.export.nets.configs import NetworkConfigs
from vexpress_trt.export.nets.fused.operations import temporal_attention, why_plain

SIZES = {"B": 1, "F": 24, "h": 64, "w": 64}
SMALL_SIZES = {"B": 1, "F": 4, "h": 8, "w": 8}
_ATTENTION = ("flash", "fmha", "attention", "sdpa", "mha")
_ORIGINAL = "original's way, eager"


def check(setting: Setting, record: Record) -> None:
    """Raises CheckFailed where a prediction is not finite, or where a GPU computes without the fused kernels or without
    a fused attention."""
    networks = model_for(setting).networks()
    sizes = SMALL_SIZES if setting.small else SIZES
    device, rounds = setting.device, 3 if setting.small else 7
    flop = {plain: count_flop(networks, sizes, plain=plain) for plain in (False, True)}
    record("sizes", {**sizes, "halves": 2})
    record("tflop_executed", flop[False] / 1e12)
    record("tflop_plain", flop[True] / 1e12)
    record("flop_counted_by", "torch's FlopCounterMode on shapes alone: convolutions, matrix products, attention")
    bandwidth = memory_bandwidth(device, mib=16 if setting.small else 2048)
    record("memory_bandwidth_gb_per_s", bandwidth)
    without_kernels = why_plain(torch.device(device))
    record("plain_operations_because", without_kernels)
    missing = [without_kernels] if device == "cuda" and without_kernels else []
    precisions = ("fp16", "bf16") if device == "cuda" else ("fp32",)
    for form, fused in (("exact", True), ("unfused", False)):
        record(f"passes_{form}", passes(count_bytes(networks, sizes, precisions[0], fused=fused), bandwidth))
    for precision in precisions:
        first = precision == precisions[0]
        ceiling = matmul_ceiling(device, TORCH[precision], size=512 if setting.small else 8192)
        record(f"ceiling_{precision}_tflops", ceiling)
        with Call(networks, sizes, device, precision) as exact:
            record(f"first_call_{precision}_s", first_call(exact, device))
            contenders = {"exact eager": exact.eager, "exact captured": exact.captured}
            seconds = in_turns(contenders, device, rounds=rounds)
            record(f"memory_{precision}", exact.memory())
            if first:
                seconds |= compared(exact, networks, sizes, device, precision, rounds, record)
                for other in ("unfused captured", _ORIGINAL):
                    record(f"times_faster_than_{other}", seconds[other] / seconds["exact captured"])
            for name, value in seconds.items():
                record(f"{name}, {precision}", figures(value, flop[name == _ORIGINAL], ceiling))
            if not all_finite([exact.prediction]):
                raise CheckFailed(f"the {precision} prediction is not finite")
            if first and device == "cuda":
                kernels = profile(exact.eager)
                record("kernels", kernels)
                if not kernels["attention"]:
                    missing.append(f"torch's attention has no fused kernel: none is named {', '.join(_ATTENTION)}")
    if missing:
        raise CheckFailed("; ".join(missing))


def first_call(call: "Call", device: str) -> float:
    """Seconds, in which Triton compiles what it has not compiled before on this machine."""
    began = perf_counter()
    call.eager()
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - began


def compared(
    exact: "Call",
    networks: NetworkConfigs,
    sizes: dict[str, int],
    device: str,
    precision: str,
    rounds: int,
    record: Record,
) -> dict[str, float]:
    """{name: seconds} of the call in turns with one that is not fused, with one whose convolutions cuDNN has chosen by
    trying, and with the original's way."""
    with (
        Call(networks, sizes, device, precision, fused=False) as unfused,
        Call(networks, sizes, device, precision) as tried,
    ):
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            tried.captured()
        contenders = {
            "exact captured": exact.captured,
            "exact captured, cudnn.benchmark": tried.captured,
            "unfused captured": unfused.captured,
            _ORIGINAL: baseline(networks, sizes, device, precision),
        }
        seconds = in_turns(contenders, device, rounds=rounds)
        record("snr_to_unfused_db", signal_to_noise(*(call.prediction.cpu().numpy() for call in (unfused, exact))))
        if device == "cuda":
            record("kernels_unfused", profile(unfused.eager))
    return seconds


def passes(moved: dict[str, int], bandwidth: float) -> dict[str, float]:
    """GB that everything but products, convolutions and attentions moves, by kind, and ms at a bandwidth in GB/s."""
    total = sum(moved.values()) / 1e9
    large = {name: size / 1e9 for name, size in moved.items() if size > 1e7}
    return {"gb": total, "ms_at_the_bandwidth": total / bandwidth * 1e3, **large}


def figures(seconds: float, flop: int, ceiling: float) -> dict[str, float]:
    """Milliseconds, TFLOP/s and the share of the ceiling (TFLOP/s) of a call of so many operations."""
    rate = flop / seconds / 1e12
    return {"ms": seconds * 1e3, "tflops": rate, "share_of_ceiling": rate / ceiling}


class Call:
    """A denoiser engine on buffers, called eagerly or as a captured CUDA graph, on a stream of its own."""

    def __init__(
        self,
        networks: NetworkConfigs,
        sizes: dict[str, int],
        device: str,
        precision: str,
        *,
        change: Callable[[nn.Module], nn.Module] = lambda module: module,
        fused: bool = True,
    ) -> None:
        self._device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        spec = denoiser_spec(networks, guided=True, precision=precision)
        module = randomised(lambda: denoiser(networks, guided=True), device=device, dtype=TORCH[precision])
        self._engine = engine_on(device, spec, change(module), precision, fused=fused)
        inputs = random_inputs(spec, sizes, device=device)
        self.prediction = torch.zeros(1, 2, *inputs["latents"].shape[1:], device=device)
        given = {**inputs, "prediction": self.prediction}
        self._engine.bind_buffers(**given)
        self._stream = torch.cuda.Stream() if device == "cuda" else None
        self._replay: Callable[[], None] | None = None

    def eager(self) -> None:
        with self._current():
            self._engine.enqueue(self._handle)

    def captured(self) -> None:
        with self._current():
            if self._replay is None:
                self._engine.enqueue(self._handle)
                self._replay = self._engine.capture(self._handle, lambda: self._engine.enqueue(self._handle))
            self._replay()

    def memory(self) -> dict[str, float]:
        """MiB that torch had in use and reserved at most."""
        if self._device == "cpu":
            return {}
        return {
            "peak_allocated_mib": torch.cuda.max_memory_allocated() / 2**20,
            "peak_reserved_mib": torch.cuda.max_memory_reserved() / 2**20,
        }

    def __enter__(self) -> "Call":
        return self

    def __exit__(self, *_: object) -> None:
        self._replay = None
        self._engine.close()

    @property
    def _handle(self) -> int:
        return self._stream.cuda_stream if self._stream else 0

    def _current(self) -> Any:
        """Work is timed on the current stream: it waits for the call's own, and that for it."""
        return _Joined(self._stream) if self._stream else nullcontext()


class _Joined:
    """Within it a side stream starts after what the current one has, and the current one goes on after it."""

    def __init__(self, side: "torch.cuda.Stream") -> None:
        self._side = side

    def __enter__(self) -> None:
        self._side.wait_stream(torch.cuda.current_stream())

    def __exit__(self, *_: object) -> None:
        torch.cuda.current_stream().wait_stream(self._side)


def baseline(networks: NetworkConfigs, sizes: dict[str, int], device: str, precision: str) -> Callable[[], Tensor]:
    """A call as the original makes it, eagerly: both halves whole, the portrait projected anew for each frame."""
    spec = denoiser_spec(networks, guided=True, precision=precision, plain=True)
    build = lambda: denoiser(networks, guided=True, plain=True)  # noqa: E731
    module = randomised(build, device=device, dtype=TORCH[precision])
    given = arguments(spec, random_inputs(spec, sizes, device=device))

    def call() -> Tensor:
        with torch.inference_mode():
            unconditional, conditional = module(*given)[0]
            return unconditional + 3.5 * (conditional - unconditional)

    return call


def profile(work: Callable[[], None], *, most: int = 25) -> dict[str, Any]:
    """The kernels of one run: which ones attend, and where the time goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    with profiled(activities=[ProfilerActivity.CUDA]) as recorded:
        work()
        torch.cuda.synchronize()
    kernels = sorted(
        ((event.key, _device_us(event) / 1e3, event.count) for event in recorded.key_averages()),
        key=lambda kernel: -kernel[1],
    )
    return {
        "attention": sorted({name[:160] for name, ms, _ in kernels if ms and attends(name)}),
        "total_ms": sum(ms for _, ms, _ in kernels),
        "slowest": [{"name": name[:160], "ms": round(ms, 3), "count": count} for name, ms, count in kernels[:most]],
    }


def attends(kernel: str) -> bool:
    """Whether a kernel is a library's fused attention, by its name; ours over frames is not one."""
    return kernel != temporal_attention.__name__ and any(word in kernel.lower() for word in _ATTENTION)


def _device_us(event: Any) -> float:
    for name in ("self_device_time_total", "self_cuda_time_total"):
        if hasattr(event, name):
            return float(getattr(event, name))
    return 0.0
