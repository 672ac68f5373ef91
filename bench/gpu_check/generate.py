"""Whole clips as a user makes them, by the model in the box: `generate --device cuda` against the CPU's frames."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import torch

from vexpress_trt.bench.gpu_check.memory import GROWTH_MIB, used_mib
from vexpress_trt.bench.gpu_check.parts import CheckFailed, Record, Setting
from vexpress_trt.bench.gpu_check.short_clip import FLOOR_DB, frames_of, likeness, short_request

if TYPE_CHECKING:
    from vexpress_trt.runtime.request import GenerationRequest

NEEDED = ("av", "diffusers", "transformers")
SECONDS, SMALL_SECONDS, LONG_SECONDS = 2.4, 0.4, 60.0
STEPS, SMALL_STEPS = 5, 1
BUDGET = "4GB"


def check(setting: Setting, record: Record) -> None:
    """Raises CheckFailed where frames are missing or unlike the CPU's, or where memory grows with the clip."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        record("skipped", f"not installed: {', '.join(missing)}")
        return
    with tempfile.TemporaryDirectory(prefix="vexpress-check-") as folder:
        _check(setting, record, Path(folder))


def _check(setting: Setting, record: Record, folder: Path) -> None:
    from vexpress_trt.models.box.box import shipped_bundle
    from vexpress_trt.runtime import write_video

    on_cpu = setting.device == "cpu"
    seconds, steps = (SMALL_SECONDS, SMALL_STEPS) if on_cpu else (SECONDS, STEPS)
    request = short_request(folder, seconds, bundle=shipped_bundle(), steps=steps)
    expected, about = frames_of(replace(request, backend="onnxruntime", device="cpu", dtype="fp32"))
    record("on the CPU", about)
    wrong = []
    with _gpu(setting):
        there = replace(request, backend="torch", device="auto" if on_cpu else "cuda")
        cases: dict[str, GenerationRequest] = {"fp32": replace(there, dtype="fp32")}
        if not on_cpu:
            cases["fp16"] = replace(there, dtype="fp16")
        cases["fp32, --save_gpu_memory"] = replace(there, dtype="fp32", save_gpu_memory=True, gpu_memory=BUDGET)
        for name, case in cases.items():
            frames, about = frames_of(case)
            about["psnr_to_the_cpu_db"] = likeness(frames, expected)
            record(name, about)
            if about["psnr_to_the_cpu_db"] < FLOOR_DB[case.dtype]:
                wrong.append(f"{name}: {about['psnr_to_the_cpu_db']:.1f} dB from the CPU's frames")
        summary = write_video(replace(there, output_path=folder / "clip.mp4"))
        record("video", {"encoder": summary.encoder, "frames": summary.frames, "seconds": summary.total_seconds})
        if not on_cpu:
            growth = _growth(replace(there, dtype="fp16"), folder, record)
            if growth > GROWTH_MIB:
                wrong.append(f"GPU memory grows by {growth:.0f} MiB over {LONG_SECONDS:.0f} s")
    if wrong:
        raise CheckFailed("; ".join(wrong))


def _growth(request: "GenerationRequest", folder: Path, record: Record) -> float:
    """MiB by which the GPU's memory rises over a long clip, once its first two windows are through."""
    from vexpress_trt.bench.speech import write_speech
    from vexpress_trt.models.box.held_out import DEMO, speech_path
    from vexpress_trt.runtime import generate

    speech = write_speech(speech_path(DEMO), LONG_SECONDS, folder / "long.wav")
    generation = generate(replace(request, audio_path=speech))
    settled = most = 0.0
    for frame in generation:
        if frame.index == 48:
            settled = most = used_mib()
        elif frame.index > 48 and frame.index % 50 == 0:
            most = max(most, used_mib())
    summary = generation.summary
    growth = most - settled
    record(
        "a minute",
        {
            "frames": summary.frames,
            "seconds": summary.total_seconds,
            "frames_per_second": summary.frames_per_second,
            "memory_growth_mib": growth,
            "torch_peak_mib": torch.cuda.max_memory_allocated() / 2**20,
            "memory_in_use_mib": most,
        },
    )
    return growth


@contextmanager
def _gpu(setting: Setting) -> Iterator[None]:
    """The GPU; to try the check itself, a device that stands for it."""
    with ExitStack() as stack:
        if setting.device == "cpu":
            from vexpress_trt.engines import selection
            from vexpress_trt.engines.gpu import Gpu, GpuStatus
            from vexpress_trt.engines.torch_cuda_engine import TorchDeviceEngine
            from vexpress_trt.runtime import preparation
            from vexpress_trt.runtime.cuda import denoise
            from vexpress_trt.runtime.cuda.host_device import HostDevice

            card = GpuStatus("13.0", (Gpu(0, "stand-in", 8 << 30, (9, 0)),), "")
            for where, name, stand_in in (
                (denoise, "GpuDevice", lambda _: HostDevice()),
                (selection, "engine_class", lambda _: TorchDeviceEngine),
                (selection.EngineChoice, "gpu", 0),
                (preparation, "gpu_status", lambda: card),
            ):
                stack.enter_context(mock.patch.object(where, name, stand_in))
        yield
