"""One denoiser call at full size: milliseconds, the share of the matmul ceiling, and the original's way beside it."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

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
from vexpress_trt.bench.gpu_check.timing import in_turns, matmul_ceiling
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.export.nets.configs import NetworkConfigs

SIZES = {"B": 1, "F": 24, "h": 64, "w": 64}
SMALL_SIZES = {"B": 1, "F": 4, "h": 8, "w": 8}
_ATTENTION = ("flash", "fmha", "attention", "sdpa", "mha")


def check(setting: Setting, record: Record) -> None:
    """Raises CheckFailed where a prediction is not finite."""
    networks = model_for(setting).networks()
    sizes = SMALL_SIZES if setting.small else SIZES
    device, rounds = setting.device, 3 if setting.small else 7
    flop = {plain: count_flop(networks, sizes, plain=plain) for plain in (False, True)}
    record("sizes", {**sizes, "halves": 2})
    record("tflop_executed", flop[False] / 1e12)
    record("tflop_plain", flop[True] / 1e12)
    record("flop_counted_by", "torch's FlopCounterMode on shapes alone: convolutions, matrix products, attention")
    precisions = ("fp16", "bf16") if device == "cuda" else ("fp32",)
    for precision in precisions:
        ceiling = matmul_ceiling(device, TORCH[precision], size=512 if setting.small else 8192)
        record(f"ceiling_{precision}_tflops", ceiling)
        with Call(networks, sizes, device, precision) as exact:
            contenders = {"exact eager": exact.eager, "exact captured": exact.captured}
            seconds = in_turns(contenders, device, rounds=rounds)
            record(f"memory_{precision}", exact.memory())
            if precision == precisions[0]:
                contenders = {
                    "exact captured": exact.captured,
                    "original's way, eager": baseline(networks, sizes, device, precision),
                }
                seconds |= in_turns(contenders, device, rounds=rounds)
                ratio = seconds["original's way, eager"] / seconds["exact captured"]
                record("times_faster_than_the_originals_way", ratio)
            for name, value in seconds.items():
                record(f"{name}, {precision}", figures(value, flop["original" in name], ceiling))
            if not all_finite([exact.prediction]):
                raise CheckFailed(f"the {precision} prediction is not finite")
            if precision == precisions[0]:
                record("kernels", profile(exact.eager) if device == "cuda" else {})
                for name, seconds in variants(exact, networks, sizes, device, precision, rounds).items():
                    record(f"{name}, {precision}", figures(seconds, flop[False], ceiling))


def variants(
    exact: "Call", networks: NetworkConfigs, sizes: dict[str, int], device: str, precision: str, rounds: int
) -> dict[str, float]:
    """{name: seconds} of the captured call with another memory format, and with algorithms that cuDNN has tried out."""
    with (
        Call(networks, sizes, device, precision, channels_last=True) as channels_last,
        Call(networks, sizes, device, precision) as tried,
        Call(networks, sizes, device, precision, gates_apart=False) as whole,
    ):
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            tried.captured()
        contenders = {
            "exact captured, again": exact.captured,
            "exact captured, channels-last": channels_last.captured,
            "exact captured, cudnn.benchmark": tried.captured,
            "exact captured, gates in one product": whole.captured,
        }
        return in_turns(contenders, device, rounds=rounds)


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
        channels_last: bool = False,
        gates_apart: bool = True,
    ) -> None:
        self._device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        spec = denoiser_spec(networks, guided=True, precision=precision)
        module = randomised(lambda: denoiser(networks, guided=True), device=device, dtype=TORCH[precision])
        self._engine = engine_on(device, spec, change(module), precision, gates_apart=gates_apart)
        if channels_last:
            module.to(memory_format=torch.channels_last)
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


def count_flop(networks: NetworkConfigs, sizes: dict[str, int], *, plain: bool) -> int:
    """Operations of a guided call, two for each multiply-add; only shapes are computed."""
    from torch.utils.flop_counter import FlopCounterMode

    spec: GraphSpec = denoiser_spec(networks, guided=True, precision="fp32", plain=plain)
    with torch.device("meta"), torch.no_grad():
        module = denoiser(networks, guided=True, plain=plain)
    given = _shapes_only(spec, sizes)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*arguments(spec, given))
    return counter.get_total_flops()


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
        "attention": sorted(
            {name[:160] for name, ms, _ in kernels if ms and any(w in name.lower() for w in _ATTENTION)}
        ),
        "total_ms": sum(ms for _, ms, _ in kernels),
        "slowest": [{"name": name[:160], "ms": round(ms, 3), "count": count} for name, ms, count in kernels[:most]],
    }


def _device_us(event: Any) -> float:
    for name in ("self_device_time_total", "self_cuda_time_total"):
        if hasattr(event, name):
            return float(getattr(event, name))
    return 0.0


def _shapes_only(spec: GraphSpec, sizes: dict[str, int]) -> dict[str, Tensor]:
    from vexpress_trt.engines.dims import evaluate

    return {
        tensor.name: torch.empty(
            [evaluate(dimension, sizes) for dimension in tensor.shape],
            dtype=getattr(torch, tensor.dtype),
            device="meta",
        )
        for tensor in spec.inputs
    }
