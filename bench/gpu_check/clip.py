"""A short clip at full size with features and decoding on the device; ten seconds extrapolated from what that took."""

from itertools import takewhile
from time import perf_counter

import numpy as np
import torch

from vexpress_trt.bench.gpu_check.around import NO_DECODER, decoder_on, features_on
from vexpress_trt.bench.gpu_check.jobs import Clip, Denoisers, device_loop, start
from vexpress_trt.bench.gpu_check.memory import used_mib
from vexpress_trt.bench.gpu_check.networks import model_for
from vexpress_trt.bench.gpu_check.parts import CheckFailed, Record, Setting
from vexpress_trt.runtime.windows import WindowPlan, latency_order

SECONDS, FPS = 10.0, 30.0


def check(setting: Setting, record: Record) -> None:
    """Raises CheckFailed where frames are missing."""
    model, side = model_for(setting), 8 if setting.small else 64
    plan = WindowPlan.covering(10, 6, 2) if setting.small else WindowPlan.covering(44, 24, 4)
    clip = Clip(plan, steps=2 if setting.small else 25, side=side)
    device, precision = setting.device, "fp16" if setting.device == "cuda" else "fp32"
    denoisers = Denoisers(model.networks(), clip, device=device, precision=precision, weights_on=device)
    features = features_on(model, clip, device, precision)
    decoder = decoder_on(model, clip, device, precision)
    if decoder is None:
        record("skipped", NO_DECODER)
    record("clip", {"frames": plan.frames, "steps": clip.steps, "pixels": 8 * side, "precision": precision,
                    "tokens": "random, not encoded from speech", "files": "none: no portrait, no MP4"})  # fmt: skip
    began, first, frames, stamps = perf_counter(), None, 0, []
    for calls, final in device_loop(clip, denoisers, source=start, features=features, decoder=decoder):
        if calls:
            stamps.append(perf_counter())
        if final:
            first = first or perf_counter() - began
            record("frames_so_far", frames + len(final))
            record("loop_ms_per_call", pace(stamps) * 1e3)
        frames += len(final)
    total = perf_counter() - began
    if frames != plan.frames:
        raise CheckFailed(f"{frames} of {plan.frames} frames came")
    record("seconds", total)
    record("seconds_to_first_frame", first)
    call = pace(stamps)
    record("loop_ms_per_call", call * 1e3)
    behind = total - (stamps[-1] - began)
    record("seconds_of_decoding_behind_the_last_call", behind)
    if device == "cuda":
        record("memory_in_use_mib", used_mib())
        record("torch_peak_mib", torch.cuda.max_memory_allocated() / 2**20)
    record("ten_seconds_extrapolated", extrapolated(call, behind, steps=clip.steps))
    denoisers.close()


def pace(stamps: list[float]) -> float:
    """Seconds from one call to the next, of which there are at least two."""
    return float(np.median(np.diff(stamps)))


def extrapolated(call: float, behind: float, *, steps: int) -> dict[str, float]:
    """A clip of ten seconds, from seconds per call and those of decoding behind the last call: the loop sets the pace;
    start-up, speech, portrait and writing the file are not in it."""
    plan = WindowPlan.covering(round(SECONDS * FPS), 24, 4)
    before_first = 1 + sum(1 for _ in takewhile(lambda call: call != (0, steps - 1), latency_order(plan, steps)))
    calls = plan.windows * steps
    return {"calls": calls, "seconds": calls * call + behind, "seconds_to_first_window": before_first * call}
