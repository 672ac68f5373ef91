"""A whole clip by TensorRT's engines gives the frames of onnxruntime; TensorRT and the GPU are played on the CPU."""

import shutil
from dataclasses import replace
from pathlib import Path

import fake_tensorrt
import numpy as np
import pytest

pytest.importorskip("av", reason="needs media input")
pytest.importorskip("diffusers", reason="needs the export extra")

from fake_tensorrt import HostDriver, store_plan  # noqa: E402
from media import write_wav  # noqa: E402
from PIL import Image  # noqa: E402

from vexpress_trt.engines.bundle import Bundle  # noqa: E402
from vexpress_trt.engines.gpu import Gpu, GpuStatus  # noqa: E402
from vexpress_trt.engines.trt.flavour import TENSORRT, TensorRt  # noqa: E402
from vexpress_trt.engines.trt.profile import ProfileSettings  # noqa: E402
from vexpress_trt.runtime import GenerationRequest, generate, preparation  # noqa: E402
from vexpress_trt.runtime.cuda import denoise  # noqa: E402
from vexpress_trt.runtime.cuda.host_device import HostDevice  # noqa: E402


@pytest.mark.parametrize("windows", [1, 2])
def test_frames_are_those_of_the_processor(
    windows: int, other_bundle: Path, gpu: HostDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(other_bundle, tmp_path / "planned.bundle", ignore=shutil.ignore_patterns("engines"))
    bundle, tensorrt = Bundle.open(root), TensorRt(TENSORRT, fake_tensorrt, "11.4")
    for graph in {spec.name for spec in bundle.manifest.graphs}:
        store_plan(bundle, tensorrt, graph, settings=ProfileSettings(window_batch=windows))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (72, 104, 3), dtype=np.uint8)).save(tmp_path / "r.png")
    write_wav(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 12800).astype(np.float32))
    request = GenerationRequest(
        tmp_path / "r.png", tmp_path / "a.wav", bundle=root, backend="onnxruntime", dtype="fp32", crop="center",
        num_inference_steps=2, guidance_interval="0,0.5", fps=25.0, portrait_cache="off", threads=1,
        window_batch=windows, retarget_strategy="no_retarget", kps_path=_track(tmp_path),
    )  # fmt: skip
    expected = list(generate(request))
    monkeypatch.setattr(denoise, "GpuDevice", lambda *about: HostDevice())
    card = GpuStatus("13.0", (Gpu(0, "stand-in", 64 << 30, (8, 9)),), "")
    monkeypatch.setattr(preparation, "gpu_status", lambda: card)
    generation = generate(replace(request, backend="auto"))
    frames = list(generation)
    assert generation.summary.backend == "tensorrt" and len(frames) == len(expected) == 20
    for frame, other in zip(frames, expected, strict=True):
        np.testing.assert_allclose(frame.image.astype(int), other.image.astype(int), atol=1)
    assert not gpu.memory and not gpu.streams
    denoiser = {address for graph, _, address in fake_tensorrt.IExecutionContext.runs if "denoiser" in graph}
    assert len(denoiser) == 1  # both share it


def _track(folder: Path) -> Path:
    from vexpress_trt.runtime.tracks import save_track

    points = np.array([[40, 40], [70, 40], [55, 60]], np.float32)
    save_track(folder / "kps.npy", np.repeat(points[None], 30, axis=0), (104, 72), 25.0)
    return folder / "kps.npy"
