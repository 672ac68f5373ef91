"""A whole `generate` with TensorRT on a GPU: the model in the box, nothing replaced but TensorRT and the driver."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import tensorrt
from fake_driver.stand_in import StandIn
from fake_tensorrt import store_plan

from vexpress_trt import cli
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.trt.flavour import TENSORRT, TensorRt
from vexpress_trt.engines.trt.profile import ProfileSettings
from vexpress_trt.models.box.box import shipped_bundle
from vexpress_trt.models.box.clip_request import clip_request
from vexpress_trt.models.box.held_out import HeldOutClip
from vexpress_trt.runtime import GenerationRequest, generate

CLIP = HeldOutClip(0)


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle in the box with an engine of each graph, as `vexpress build` would leave it."""
    root = shutil.copytree(shipped_bundle(), tmp_path_factory.mktemp("planned") / "box.bundle")
    bundle = Bundle.open(root)
    for graph in {spec.name for spec in bundle.manifest.graphs}:
        store_plan(bundle, TensorRt(TENSORRT, tensorrt, "11.4"), graph, settings=ProfileSettings())
    return root


@pytest.fixture(scope="module")
def request_of(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> GenerationRequest:
    """44 frames in 2 steps, the second without guidance, on the processor."""
    return clip_request(
        CLIP, tmp_path_factory.mktemp("clip"), bundle=planned, backend="onnxruntime", dtype="fp32", threads=1,
        num_inference_steps=2, guidance_interval="0,0.5",
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(request_of: GenerationRequest) -> np.ndarray:
    return np.stack([frame.image for frame in generate(request_of)])


@pytest.mark.parametrize("more", [{"gpu_id": 1}, {"save_gpu_memory": True}])
def test_frames_are_those_of_the_processor(
    more: dict, request_of: GenerationRequest, expected: np.ndarray, stand_in: StandIn
) -> None:
    launched = stand_in.count("cuGraphLaunch")
    generation = generate(replace(request_of, backend="tensorrt", device="cuda", dtype="auto", **more))
    np.testing.assert_array_equal(np.stack([frame.image for frame in generation]), expected)
    assert generation.summary.backend.startswith("tensorrt") and stand_in.count("cuGraphLaunch") > launched


def test_the_command_writes_them_to_a_video(
    request_of: GenerationRequest, expected: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    named = ("reference_image_path", "audio_path", "kps_path", "bundle", "fps", "num_inference_steps",
             "guidance_interval", "portrait_cache")  # fmt: skip
    flags = [word for name in named for word in (f"--{name}", str(getattr(request_of, name)))]
    video = tmp_path / "gpu.mp4"
    on_gpu = ["--device", "cuda", "--backend", "tensorrt", "--output_path", str(video), "--json", "--quiet"]
    assert cli.main(["generate", *flags, *on_gpu]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["backend"] == "tensorrt" and said["frames"] == len(expected)
    with av.open(str(video)) as media:
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in media.decode(video=0)])
    assert np.abs(pictures.astype(float) - expected).mean() < 2  # of 255, by the encoder
