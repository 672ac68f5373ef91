"""One denoiser call at full size: milliseconds, the share of the matmul ceiling, unfused and the original's way beside.

"exact" is what the engine takes: the exact savings in the fused form. All are measured in turns, the ceiling among
them, so that they meet the same clocks.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from time import perf_counter

import torch

from vexpress_trt.bench.gpu_check.denoiser_calls import SIZES, SMALL_SIZES, Call, originals_way
from vexpress_trt.bench.gpu_check.golden import signal_to_noise
from vexpress_trt.bench.gpu_check.kernel_times import profile
from vexpress_trt.bench.gpu_check.networks import TORCH, all_finite, model_for
from vexpress_trt.bench.gpu_check.parts import CheckFailed, Faults, Record, Setting
from vexpress_trt.bench.gpu_check.shapes import count_bytes, count_flop
from vexpress_trt.bench.gpu_check.surroundings import gpu_state, other_work
from vexpress_trt.bench.gpu_check.timing import MatmulCeiling, in_turns, memory_bandwidth
from vexpress_trt.export.nets.configs import NetworkConfigs
from vexpress_trt.export.nets.fused.operations import why_plain

EAGER, CAPTURED, UNFUSED, ORIGINAL = "exact eager", "exact captured", "unfused captured", "original's way, eager"
TRIED = "exact captured, cudnn.benchmark"
_CEILING = "ceiling"


def check(setting: Setting, record: Record) -> None:
    """Raises CheckFailed where a prediction is not finite, or where a GPU computes without the fused kernels or without
    a fused attention."""
    networks, device = model_for(setting).networks(), setting.device
    sizes = SMALL_SIZES if setting.small else SIZES
    faults = Faults()
    record("other_work", other_work())
    record("sizes", {**sizes, "halves": 2})
    speed = Speed(networks, sizes, setting, record, faults)
    with faults.of("the fused kernels"):
        without_kernels = why_plain(torch.device(device))
        record("plain_operations_because", without_kernels)
        if device == "cuda" and without_kernels:
            raise CheckFailed(without_kernels)
    first, *others = ("fp16", "bf16") if device == "cuda" else ("fp32",)
    with faults.of(first):
        speed.compare_all(first)
    for precision in others:
        with faults.of(precision):
            speed.look_at(precision)
    faults.tell()


class Speed:
    """Measures calls and records what they take."""

    def __init__(
        self, networks: NetworkConfigs, sizes: dict[str, int], setting: Setting, record: Record, faults: Faults
    ) -> None:
        self._given = networks, sizes, setting.device
        self._device, self._small, self._record, self._faults = setting.device, setting.small, record, faults
        self._rounds = 3 if self._small else 7
        self._flop = {plain: count_flop(networks, sizes, plain=plain) for plain in (False, True)}
        record("tflop_executed", sum(self._flop[False].values()) / 1e12)
        record("tflop_plain", sum(self._flop[True].values()) / 1e12)
        record("flop_counted_by", "torch's FlopCounterMode on shapes alone: convolutions, matrix products, attention")

    def compare_all(self, precision: str) -> None:
        """The call in turns with one that is not fused, with one whose convolutions cuDNN has chosen by trying, and
        with the original's way. What is known to run comes first: a fused kernel's fault would end the rest."""
        with ExitStack() as stack:
            ceiling, before = self._ceiling(precision)
            contenders: dict[str, Callable[[], object]] = {}
            with self._faults.of(ORIGINAL):
                original = originals_way(*self._given, precision)
                original()
                contenders[ORIGINAL] = original
            with self._faults.of(UNFUSED):
                unfused = stack.enter_context(Call(*self._given, precision, fused=False))
                unfused.captured()
                contenders[UNFUSED] = unfused.captured
                self._record("memory_unfused", unfused.memory())
            self._tell_times(contenders, ceiling, before, precision)
            with self._faults.of("attention, unfused"):
                if UNFUSED in contenders:
                    self._tell_kernels("kernels_unfused", unfused)
            exact = stack.enter_context(Call(*self._given, precision))
            contenders |= self._begun(exact, precision)
            with self._faults.of(TRIED):
                contenders[TRIED] = stack.enter_context(self._tried(precision)).captured
            seconds = self._tell_times(contenders, ceiling, before, precision)
            for other in [name for name in (UNFUSED, ORIGINAL) if name in seconds]:
                self._record(f"times_faster_than_{other}", seconds[other] / seconds[CAPTURED])
            if UNFUSED in seconds:
                pair = (call.prediction.cpu().numpy() for call in (unfused, exact))
                self._record("snr_to_unfused_db", signal_to_noise(*pair))
            self._tell_state(exact)
            with self._faults.of("attention"):
                self._tell_kernels("kernels", exact)
        with self._faults.of("passes over memory"):
            self._tell_passes(precision)

    def look_at(self, precision: str) -> None:
        """The call alone, in another precision."""
        ceiling, before = self._ceiling(precision)
        with Call(*self._given, precision) as exact:
            self._tell_times(self._begun(exact, precision), ceiling, before, precision)

    def _begun(self, exact: Call, precision: str) -> Mapping[str, Callable[[], object]]:
        self._record(f"first_call_{precision}_s", first_call(exact, self._device))
        exact.captured()
        self._record(f"memory_{precision}", exact.memory())
        if not all_finite([exact.prediction]):
            raise CheckFailed("the prediction is not finite")
        return {EAGER: exact.eager, CAPTURED: exact.captured}

    def _tried(self, precision: str) -> Call:
        call = Call(*self._given, precision)
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
            call.captured()
        return call

    def _ceiling(self, precision: str) -> tuple[MatmulCeiling, float]:
        ceiling = MatmulCeiling(self._device, TORCH[precision], size=512 if self._small else 8192)
        return ceiling, ceiling.measured()

    def _tell_times(
        self, contenders: Mapping[str, Callable[[], object]], ceiling: MatmulCeiling, before: float, precision: str
    ) -> dict[str, float]:
        """{name: seconds}"""
        seconds = in_turns({**contenders, _CEILING: ceiling}, self._device, rounds=self._rounds)
        rate = ceiling.rate(seconds.pop(_CEILING))
        rates = {"before": before, "in_turns": rate, "after": ceiling.measured()}
        self._record(f"ceiling_{precision}_tflops", rates)
        for name, value in seconds.items():
            flop = sum(self._flop[name == ORIGINAL].values())
            self._record(f"{name}, {precision}", figures(value, flop, rate, before))
        return seconds

    def _tell_kernels(self, name: str, call: Call) -> None:
        """Raises CheckFailed where torch's attention has no fused kernel."""
        if self._device == "cuda":
            kernels = profile(call.eager, self._flop[False])
            self._record(name, kernels)
            if not kernels["attention"]:
                raise CheckFailed("torch's attention has no fused kernel that is known by its name")

    def _tell_state(self, exact: Call) -> None:
        """Clocks and temperature while calls are running."""
        if self._device == "cuda":
            for _ in range(12):  # longer than nvidia-smi takes to start
                exact.captured()
            self._record("gpu_at_work", gpu_state(torch.cuda.get_device_name()))
            torch.cuda.synchronize()

    def _tell_passes(self, precision: str) -> None:
        networks, sizes, device = self._given
        bandwidth = memory_bandwidth(device, mib=16 if self._small else 2048)
        self._record("memory_bandwidth_gb_per_s", bandwidth)
        for form, fused in (("exact", True), ("unfused", False)):
            self._record(f"passes_{form}", passes(count_bytes(networks, sizes, precision, fused=fused), bandwidth))


def first_call(call: Call, device: str) -> float:
    """Seconds, in which Triton compiles what it has not compiled before on this machine."""
    began = perf_counter()
    call.eager()
    if device == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - began


def passes(moved: dict[str, int], bandwidth: float) -> dict[str, float]:
    """GB that everything but products, convolutions and attentions moves, by kind, and ms at a bandwidth in GB/s."""
    total = sum(moved.values()) / 1e9
    large = {name: size / 1e9 for name, size in moved.items() if size > 1e7}
    return {"gb": total, "ms_at_the_bandwidth": total / bandwidth * 1e3, **large}


def figures(seconds: float, flop: int, ceiling: float, before: float) -> dict[str, float]:
    """Milliseconds, TFLOP/s and the shares of a call of so many operations: of the ceiling (TFLOP/s) measured in turns
    with it, and of the one that was measured before, when the GPU was cool."""
    rate = flop / seconds / 1e12
    return {
        "ms": seconds * 1e3,
        "tflops": rate,
        "share_of_ceiling": rate / ceiling,
        "share_of_ceiling_before": rate / before,
    }
