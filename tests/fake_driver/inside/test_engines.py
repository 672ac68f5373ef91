"""TensorRT's engines on a GPU's memory and streams: on arrays, beside one another, and as a part of captured work."""

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import tensorrt
from fake_driver.stand_in import StandIn
from fake_tensorrt import NEEDED, IExecutionContext, store_plan

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.engine import Engine, load_engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.trt.flavour import TENSORRT, TensorRt
from vexpress_trt.engines.trt.profile import ProfileSettings
from vexpress_trt.models.box.box import shipped_bundle
from vexpress_trt.runtime.cuda.gpu import GpuDevice

FLOAT = np.dtype(np.float32)
GRAPHS = ("kps_guider", "vae_decoder")
SHAPES = {"rgb": (8, 3, 64, 64), "feature": (8, 64, 8, 8), "latents": (1, 4, 8, 8), "image": (1, 3, 64, 64)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The model in the box, with engines of two graphs for images of 64x64."""
    planned = Bundle.open(shutil.copytree(shipped_bundle(), tmp_path_factory.mktemp("planned") / "box.bundle"))
    settings = ProfileSettings(image_width=64, image_height=64)
    for graph in GRAPHS:
        store_plan(planned, TensorRt(TENSORRT, tensorrt, "11.4"), graph, settings=settings)
    return planned


@pytest.fixture(params=[0, 1])
def gpu(request: pytest.FixtureRequest) -> Iterator[GpuDevice]:
    device = GpuDevice(request.param)
    device.number = request.param
    yield device
    device.close()


def load(bundle: Bundle, graph: str, gpu: int = 0, **settings: int) -> Engine:
    return load_engine(bundle, graph, backend=f"tensorrt:{gpu}" if gpu else "tensorrt", precision="fp32", **settings)


def given(name: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.5, SHAPES[name]).astype(FLOAT)


def on_the_processor(bundle: Bundle, graph: str, **arrays: np.ndarray) -> np.ndarray:
    with load_engine(bundle, graph, backend="onnxruntime", precision="fp32", threads=1) as engine:
        return next(iter(engine.run(**arrays).values()))


def settled(device: GpuDevice, stream: int) -> None:
    event = device.event()
    device.record(event, stream)
    while not device.happened(event):
        pass


@pytest.mark.parametrize("number", [0, 1])
def test_arrays_in_arrays_out(bundle: Bundle, number: int) -> None:
    with load(bundle, "vae_decoder", number) as engine:
        for seed in range(3):
            latents = given("latents", seed)
            expected = on_the_processor(bundle, "vae_decoder", latents=latents)
            np.testing.assert_array_equal(engine.run(latents=latents)["image"], expected)


def test_what_is_bound_is_there_for_every_stream(bundle: Bundle, gpu: GpuDevice, stand_in: StandIn) -> None:
    image = gpu.arena({"image": (SHAPES["image"], FLOAT)})["image"]
    back, stream = gpu.pinned(SHAPES["image"], FLOAT), gpu.stream()
    values = [given("latents", seed) for seed in (0, 1)]
    expected = [on_the_processor(bundle, "vae_decoder", latents=latents) for latents in values]
    with load(bundle, "vae_decoder", gpu.number) as engine:
        for seed in range(30):
            stand_in.seed(seed)
            engine.bind(latents=values[seed % 2])
            engine.bind_buffers(image=image)
            engine.enqueue(stream)
            gpu.download(image, back, stream)
            settled(gpu, stream)
            np.testing.assert_array_equal(back, expected[seed % 2])


def test_two_engines_on_two_streams_captured_and_launched_with_other_values(bundle: Bundle, gpu: GpuDevice) -> None:
    """Their working memory, which every run spoils, is nobody's but the stream's."""
    sides = (("kps_guider", "rgb", "feature"), ("vae_decoder", "latents", "image"))
    with load(bundle, "kps_guider", gpu.number) as guider, load(bundle, "vae_decoder", gpu.number) as decoder:
        engines = {"kps_guider": guider, "vae_decoder": decoder}
        buffers = gpu.arena({name: (shape, FLOAT) for name, shape in SHAPES.items()})
        pinned = {name: gpu.pinned(shape, FLOAT) for name, shape in SHAPES.items()}
        streams = {graph: gpu.stream() for graph in GRAPHS}
        work = {}
        for graph, *names in sides:
            engines[graph].bind_buffers(**{name: buffers[name] for name in names})
            work[graph] = lambda graph=graph: engines[graph].enqueue(streams[graph])
        for seed in range(4):
            for graph, taken, result in sides:
                pinned[taken][...] = given(taken, seed)
                gpu.upload(pinned[taken], buffers[taken], streams[graph])
                if seed == 1:
                    work[graph] = engines[graph].capture(streams[graph], work[graph])
                work[graph]()
                gpu.download(buffers[result], pinned[result], streams[graph])
            for graph, taken, result in sides:
                settled(gpu, streams[graph])
                expected = on_the_processor(bundle, graph, **{taken: given(taken, seed)})
                np.testing.assert_array_equal(pinned[result], expected)
        working = {(graph, memory) for graph, stream, memory in IExecutionContext.runs if stream in streams.values()}
        assert len({memory for _, memory in working}) == len(streams)


def test_what_other_programs_have_left_is_told(bundle: Bundle, stand_in: StandIn) -> None:
    with load(bundle, "vae_decoder") as engine:
        stand_in.limit_memory(2 * NEEDED)
        try:
            with pytest.raises(UserError, match="the GPU has no room for another 0 MiB of working memory"):
                for seed in range(2):
                    engine.run(latents=given("latents", seed))
                    stand_in.limit_memory(NEEDED)
                    engine.renew()
        finally:
            stand_in.limit_memory(8 << 30)
