"""torch.compile beside our own kernels: what it makes of the unfused denoiser, and the fused one, both captured."""

from time import perf_counter

import torch

from vexpress_trt.bench.gpu_check.networks import TORCH, model_for
from vexpress_trt.bench.gpu_check.parts import Record, Setting
from vexpress_trt.bench.gpu_check.shapes import count_flop
from vexpress_trt.bench.gpu_check.speed import SIZES, SMALL_SIZES, Call, figures, profile
from vexpress_trt.bench.gpu_check.timing import in_turns, matmul_ceiling


def check(setting: Setting, record: Record) -> None:
    """Compiles first, which takes minutes at full size, then measures in turns."""
    networks = model_for(setting).networks()
    sizes, device = SMALL_SIZES if setting.small else SIZES, setting.device
    ceiling = matmul_ceiling(device, TORCH["fp16"], size=512 if setting.small else 8192)
    record("ceiling_fp16_tflops", ceiling)
    flop = count_flop(networks, sizes, plain=False)
    compiler = lambda module: torch.compile(module, dynamic=False)  # noqa: E731
    with (
        Call(networks, sizes, device, "fp16") as exact,
        Call(networks, sizes, device, "fp16", change=compiler, fused=False) as compiled,
    ):
        began = perf_counter()
        compiled.eager()
        compiled.captured()
        if device == "cuda":
            torch.cuda.synchronize()
        record("compile_seconds", perf_counter() - began)
        contenders = {"exact captured": exact.captured, "unfused, compiled and captured": compiled.captured}
        for name, seconds in in_turns(contenders, device, rounds=3 if setting.small else 7).items():
            record(f"{name}, fp16", figures(seconds, flop, ceiling))
        record("largest_difference", float((exact.prediction - compiled.prediction).abs().max()))
        if device == "cuda":
            record("kernels", profile(compiled.eager))
