"""What a graph takes on a GPU is known before anything is loaded: plans as they were built, else the graph's files."""

import sys
from dataclasses import replace

import fake_tensorrt
from fake_tensorrt import HostDriver, store_plan

from vexpress_trt.engines.bundle import Bundle, graph_bytes
from vexpress_trt.engines.footprint import Footprint, footprint
from vexpress_trt.engines.selection import EngineChoice
from vexpress_trt.engines.trt.flavour import TensorRt
from vexpress_trt.engines.trt.profile import ProfileSettings
from vexpress_trt.engines.trt.store import EngineStore


def choice_of(tensorrt: TensorRt) -> EngineChoice:
    return EngineChoice(tensorrt.backend, "as asked", "fp32", "fp32")


def test_the_plan_for_the_sizes_counts(bundle: Bundle, flavoured: TensorRt) -> None:
    small = store_plan(bundle, flavoured, "vae_decoder", settings=ProfileSettings(image_width=40, image_height=24))
    large = store_plan(bundle, flavoured, "vae_decoder", options=("weight_streaming",), padding="x" * 999)
    choice = choice_of(flavoured)
    assert footprint(bundle, choice, "vae_decoder", {"N": 1, "h": 3, "w": 5}) == Footprint(
        small.stat().st_size, planned=True
    )
    about = bundle.manifest.model
    sizes = {"N": 1, "h": about.image_height // 8, "w": about.image_width // 8}
    assert footprint(bundle, choice, "vae_decoder", sizes) == Footprint(
        large.stat().st_size, planned=True, streamable=True
    )
    assert fake_tensorrt.Runtime.deserialised == []


def test_files_count_in_the_type_computed_in_where_no_plan_is_for_the_sizes(bundle: Bundle, gpu: HostDriver) -> None:
    tensorrt = TensorRt("tensorrt", sys.modules["fake_tensorrt"], "11.4")
    store_plan(bundle, tensorrt, "vae_decoder")
    files = graph_bytes(bundle, bundle.graph("vae_decoder", "fp32"))
    odd = {"N": 1, "h": 99, "w": 5}
    assert footprint(bundle, choice_of(tensorrt), "vae_decoder", odd) == Footprint(files)
    torch = EngineChoice("torch-cuda", "as asked", "fp32", "fp32")
    assert footprint(bundle, torch, "vae_decoder", odd) == Footprint(files)
    assert footprint(bundle, replace(torch, dtype="fp16"), "vae_decoder", odd) == Footprint(files // 2)


def test_working_memory_is_known_of_plans_that_were_built_here(bundle: Bundle, flavoured: TensorRt) -> None:
    path = store_plan(bundle, flavoured, "vae_decoder")
    (stored,) = EngineStore(bundle).all()
    sizes = {"N": 1, "h": bundle.manifest.model.image_height // 8, "w": bundle.manifest.model.image_width // 8}
    assert footprint(bundle, choice_of(flavoured), "vae_decoder", sizes).working is None
    EngineStore(bundle).put(stored.sidecar.key, path.read_bytes(), {"working_bytes": 4711}, stored.sidecar.bindings)
    assert footprint(bundle, choice_of(flavoured), "vae_decoder", sizes).working == 4711
