"""torch.compile beside our own kernels: what it makes of the unfused denoiser, and the fused one, both captured."""

from time import perf_counter

import torch

from vexpress_trt.bench.gpu_check.denoiser_calls import SIZES, SMALL_SIZES, Call
from vexpress_trt.bench.gpu_check.kernel_times import profile
from vexpress_trt.bench.gpu_check.networks import TORCH, model_for
from vexpress_trt.bench.gpu_check.parts import Record, Setting
from vexpress_trt.bench.gpu_check.shapes import count_flop
from vexpress_trt.bench.gpu_check.speed import CAPTURED, figures
from vexpress_trt.bench.gpu_check.timing import MatmulCeiling, in_turns

COMPILED = "unfused, compiled and captured"


def check(setting: Setting, record: Record) -> None:
    """Compiles first, which takes minutes at full size, then measures in turns."""
    networks = model_for(setting).networks()
    sizes, device = SMALL_SIZES if setting.small else SIZES, setting.device
    precision = "fp16" if device == "cuda" else "fp32"
    flop = count_flop(networks, sizes, plain=False)
    with (
        Call(networks, sizes, device, precision) as exact,
        Call(networks, sizes, device, precision, change=compiler, fused=False) as compiled,
    ):
        began = perf_counter()
        compiled.eager()
        compiled.captured()
        if device == "cuda":
            torch.cuda.synchronize()
        record("compile_seconds", perf_counter() - began)
        ceiling = MatmulCeiling(device, TORCH[precision], size=512 if setting.small else 8192)
        before = ceiling.measured()
        contenders = {CAPTURED: exact.captured, COMPILED: compiled.captured, "ceiling": ceiling}
        seconds = in_turns(contenders, device, rounds=3 if setting.small else 7)
        rate = ceiling.rate(seconds.pop("ceiling"))
        record(f"ceiling_{precision}_tflops", {"before": before, "in_turns": rate})
        for name, value in seconds.items():
            record(f"{name}, {precision}", figures(value, sum(flop.values()), rate, before))
        record("times_faster_than_compiled", seconds[COMPILED] / seconds[CAPTURED])
        record("largest_difference", float((exact.prediction - compiled.prediction).abs().max()))
        if device == "cuda":
            record("kernels", profile(compiled.eager, flop))


def compiler(module: torch.nn.Module) -> torch.nn.Module:
    return torch.compile(module, dynamic=False)
