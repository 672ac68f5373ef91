"""What weights take on a GPU is known before anything is loaded: plans as they were built, else the graph's files."""

import sys
from dataclasses import replace

import fake_tensorrt
from fake_tensorrt import HostDriver, store_plan

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.gpu_weights import GpuWeights, gpu_weights
from vexpress_trt.engines.selection import EngineChoice
from vexpress_trt.engines.trt.flavour import TensorRt
from vexpress_trt.engines.trt.profile import ProfileSettings


def choice_of(tensorrt: TensorRt) -> EngineChoice:
    return EngineChoice(tensorrt.backend, "as asked", "fp32", "fp32")


def test_the_plan_for_the_sizes_counts(bundle: Bundle, flavoured: TensorRt) -> None:
    small = store_plan(bundle, flavoured, "vae_decoder", settings=ProfileSettings(image_width=40, image_height=24))
    large = store_plan(bundle, flavoured, "vae_decoder", options=("weight_streaming",), padding="x" * 999)
    choice = choice_of(flavoured)
    assert gpu_weights(bundle, choice, "vae_decoder", {"N": 1, "h": 3, "w": 5}) == GpuWeights(
        small.stat().st_size, exact=True
    )
    about = bundle.manifest.model
    sizes = {"N": 1, "h": about.image_height // 8, "w": about.image_width // 8}
    assert gpu_weights(bundle, choice, "vae_decoder", sizes) == GpuWeights(
        large.stat().st_size, exact=True, streamable=True
    )
    assert fake_tensorrt.Runtime.deserialised == []


def test_files_count_in_the_type_computed_in_where_no_plan_is_for_the_sizes(bundle: Bundle, gpu: HostDriver) -> None:
    tensorrt = TensorRt("tensorrt", sys.modules["fake_tensorrt"], "11.4")
    store_plan(bundle, tensorrt, "vae_decoder")
    files = sum(bundle.manifest.files[file].size for file in bundle.graph("vae_decoder", "fp32").files)
    odd = {"N": 1, "h": 99, "w": 5}
    assert gpu_weights(bundle, choice_of(tensorrt), "vae_decoder", odd) == GpuWeights(files)
    torch = EngineChoice("torch-cuda", "as asked", "fp32", "fp32")
    assert gpu_weights(bundle, torch, "vae_decoder", odd) == GpuWeights(files)
    assert gpu_weights(bundle, replace(torch, dtype="fp16"), "vae_decoder", odd) == GpuWeights(files // 2)
