"""The captured loop against the eager one, against the CPU's loop with the same predictions, against the CPU alone.

The denoisers are fused, except for those of the CPU alone.
"""

import numpy as np

from vexpress_trt.bench.gpu_check.jobs import Clip, Denoisers, device_loop, host_loop, stacked
from vexpress_trt.bench.gpu_check.networks import MINI
from vexpress_trt.bench.gpu_check.parts import CheckFailed, Faults, Record, Setting
from vexpress_trt.runtime.windows import WindowPlan

# Final latents have a deviation near 1. FP32 on two kinds of processor, over some steps under guidance 3.5:
FP32_TOLERANCE = 2e-3

# Large enough for the groups of the deepest level: normalised over two values they amplify rounding 10,000 times.
SIDE = 16

CLIPS = {
    "ddim, two graphs": ("ddim", Clip(WindowPlan(4, 1, 4), steps=3, side=SIDE, single_from=2)),
    "dpmpp_2m, two windows a call": ("dpmpp_2m", Clip(WindowPlan(4, 2, 4), steps=3, side=SIDE, window_batch=2)),
}


def check(setting: Setting, record: Record) -> None:
    """Raises CheckFailed where the loop's own arithmetic is not bit-identical, or where FP32 differs from the CPU's."""
    wrong = Faults()
    for name in CLIPS:
        for precision in ("fp32", "fp16", "bf16") if setting.device == "cuda" else ("fp32",):
            with wrong.of(f"{name}, {precision}"):
                found = compared(name, setting.device, precision)
                record(f"{name}, {precision}", found)
                if here := faults(found, alone=CLIPS[name][1].window_batch == 1):
                    raise CheckFailed(", ".join(here))
    wrong.tell()


def compared(name: str, device: str, precision: str) -> dict:
    """How a clip's latents by the captured loop differ from those by the others."""
    networks, (solver, clip) = MINI.networks(), CLIPS[name]
    denoisers = Denoisers(networks, clip, device=device, precision=precision)
    captured = stacked(device_loop(clip, denoisers, solver=solver))
    eager = stacked(device_loop(clip, denoisers, solver=solver, capture=False))
    by_host = host_loop(clip, denoisers, solver=solver)
    denoisers.close()
    found = {
        "frames": len(captured),
        "captured_equals_eager": bool((captured == eager).all()),
        "largest_to_eager": largest(captured, eager),
        "equals_the_cpus_loop_with_this_engine": bool((captured == by_host).all()),
        "largest_to_the_cpus_loop": largest(captured, by_host),
    }
    if precision == "fp32":
        on_cpu = Denoisers(networks, clip, device="cpu", precision="fp32", fused=False)
        expected = host_loop(clip, on_cpu, solver=solver)
        found["largest_to_the_cpu_alone"] = largest(captured, expected)
        found["deviation"] = float(expected.std())
    return found


def faults(found: dict, *, alone: bool) -> list[str]:
    """What is not as it has to be. `alone`: one window a call; else the CPU's loop may have fewer in its last calls,
    for which libraries choose other algorithms."""
    wrong = []
    if not found["captured_equals_eager"]:
        wrong.append(f"captured and eager loop differ by up to {found['largest_to_eager']:.2g}")
    if alone and not found["equals_the_cpus_loop_with_this_engine"]:
        wrong.append(f"the loop's arithmetic differs from the CPU's by up to {found['largest_to_the_cpus_loop']:.2g}")
    if not found.get("largest_to_the_cpu_alone", 0.0) <= FP32_TOLERANCE:
        wrong.append(f"latents differ from the CPU's by up to {found['largest_to_the_cpu_alone']:.2g}")
    return wrong


def largest(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference; infinite where a value is not finite."""
    difference = np.abs(one - other)
    return float(difference.max()) if np.isfinite(difference).all() else float("inf")
