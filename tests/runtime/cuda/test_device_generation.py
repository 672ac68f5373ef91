"""A whole job with the loop on a device gives the frames of the loop on the CPU; here the device is the CPU as well."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs media input")
pytest.importorskip("diffusers", reason="needs the export extra")

from media import write_inputs  # noqa: E402

from vexpress_trt.engines import selection  # noqa: E402
from vexpress_trt.engines.errors import UserError  # noqa: E402
from vexpress_trt.engines.gpu import Gpu, GpuStatus  # noqa: E402
from vexpress_trt.engines.torch_cuda_engine import TorchDeviceEngine  # noqa: E402
from vexpress_trt.runtime import (  # noqa: E402
    GenerationRequest,
    generate,
    preparation,  # noqa: E402
)
from vexpress_trt.runtime.cuda import denoise  # noqa: E402
from vexpress_trt.runtime.cuda.host_device import HostDevice  # noqa: E402
from vexpress_trt.runtime.engine_pool import EnginePool  # noqa: E402


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"guidance_interval": "0,0.5", "solver": "dpmpp_2m"},
        {"window_batch": 2, "gpu_memory": "8GB"},
        {"save_gpu_memory": True, "num_inference_steps": 1},
        {"dump_tensors": Path("dump.npz"), "num_inference_steps": 1},
    ],
    ids=lambda settings: ", ".join(settings) or "plain",
)
def test_frames_are_those_of_the_cpus_loop(
    settings: dict, other_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    request = GenerationRequest(
        **write_inputs(tmp_path),
        bundle=other_bundle,
        backend="torch",
        dtype="fp32",
        fps=25.0,
        portrait_cache="off",
        threads=1,
        **{"num_inference_steps": 3, **settings},
    )
    expected = list(generate(request))
    devices = []
    monkeypatch.setattr(denoise, "GpuDevice", lambda gpu: devices.append(HostDevice()) or devices[-1])
    monkeypatch.setattr(selection, "engine_class", lambda backend: TorchDeviceEngine)
    monkeypatch.setattr(selection.EngineChoice, "gpu", 0)
    card = GpuStatus("13.0", (Gpu(0, "stand-in", 8 << 30, (9, 0)),), "")
    monkeypatch.setattr(preparation, "gpu_status", lambda: card)
    with pytest.raises(UserError, match="--gpu_memory: this clip needs about"):
        generate(replace(request, gpu_memory="600MB"))
    with EnginePool() as pool:
        generation = generate(request, engines=pool)
        frames = list(generation)
        assert bool(len(pool)) == (request.gpu_memory is None and not request.save_gpu_memory)
    assert len(devices) == 1 + request.save_gpu_memory
    assert len(frames) == len(expected) == 20
    for frame, other in zip(frames, expected, strict=True):
        # Two windows a call: the CPU's loop has fewer in its last calls, for which libraries choose other algorithms.
        np.testing.assert_allclose(frame.image.astype(int), other.image.astype(int), atol=request.window_batch - 1)
    assert generation.summary.denoiser_calls == generation.summary.windows * request.num_inference_steps
