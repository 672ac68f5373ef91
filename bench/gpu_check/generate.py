"""Whole clips as a user makes them, by the model in the box: `generate --device cuda` against the CPU's frames."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from vexpress_trt.bench.gpu_check.memory import GROWTH_MIB, MemoryWatch
from vexpress_trt.bench.gpu_check.parts import CheckFailed, Faults, Record, Setting, Skipped
from vexpress_trt.bench.gpu_check.short_clip import FLOOR_DB, frames_of, likeness, short_request

if TYPE_CHECKING:
    from vexpress_trt.runtime.request import GenerationRequest

NEEDED = ("av", "diffusers", "transformers")
SECONDS, LONG_SECONDS, STEPS = 2.4, 60.0, 5
SMALL_SECONDS, SMALL_LONG_SECONDS, SMALL_STEPS = 0.4, 0.8, 1
BUDGET = "4GB"


def check(setting: Setting, record: Record) -> None:
    """Raises CheckFailed where frames are missing or unlike the CPU's, or where memory grows with the clip; Skipped
    where a package is missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise Skipped(f"not installed: {', '.join(missing)}")
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
    faults = Faults()
    with _gpu(setting):
        there = replace(request, backend="torch", device="auto" if on_cpu else "cuda")
        cases: dict[str, GenerationRequest] = {"fp32": replace(there, dtype="fp32")}
        if not on_cpu:
            cases["fp16"] = replace(there, dtype="fp16")
        cases["fp32, --save_gpu_memory"] = replace(there, dtype="fp32", save_gpu_memory=True, gpu_memory=BUDGET)
        for name, case in cases.items():
            with faults.of(name):
                frames, about = frames_of(case)
                about["psnr_to_the_cpu_db"] = likeness(frames, expected)
                record(name, about)
                if about["psnr_to_the_cpu_db"] < FLOOR_DB[case.dtype]:
                    raise CheckFailed(f"{about['psnr_to_the_cpu_db']:.1f} dB from the CPU's frames")
        with faults.of("video"):
            summary = write_video(replace(there, output_path=folder / "clip.mp4"))
            record("video", {"encoder": summary.encoder, "frames": summary.frames, "seconds": summary.total_seconds})
        with faults.of("a long clip"):
            seconds = SMALL_LONG_SECONDS if on_cpu else LONG_SECONDS
            found = _long_clip(there if on_cpu else replace(there, dtype="fp16"), seconds, folder)
            record("a long clip", found)
            if found["memory_growth_mib"] > GROWTH_MIB:
                raise CheckFailed(f"GPU memory grows by {found['memory_growth_mib']:.0f} MiB over {seconds:g} s")
    faults.tell()


def _long_clip(request: "GenerationRequest", seconds: float, folder: Path) -> dict[str, Any]:
    """How fast a clip of so many seconds is, and the GPU's memory while it lasts."""
    from vexpress_trt.bench.speech import write_speech
    from vexpress_trt.models.box.held_out import DEMO, speech_path
    from vexpress_trt.runtime import generate

    speech = write_speech(speech_path(DEMO), seconds, folder / "long.wav")
    generation, memory = generate(replace(request, audio_path=speech)), MemoryWatch()
    for frame in generation:
        if frame.index % 10 == 0:
            memory.look()
    summary = generation.summary
    return {
        "frames": summary.frames,
        "seconds": summary.total_seconds,
        "frames_per_second": summary.frames_per_second,
        "torch_peak_mib": torch.cuda.max_memory_allocated() / 2**20,
        **memory.found(),
    }


@contextmanager
def _gpu(setting: Setting) -> Iterator[None]:
    """The GPU; to try the check itself, a device that stands for it."""
    with ExitStack() as stack:
        if setting.device == "cpu":
            from vexpress_trt.bench.gpu_check import memory
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
                (memory, "used_mib", lambda: 0.0),
            ):
                stack.enter_context(mock.patch.object(where, name, stand_in))
        yield
