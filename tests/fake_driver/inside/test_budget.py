"""`--gpu_memory` on a GPU: engines keep within their shares, weights stream where they must, and excess is told."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_tensorrt
import numpy as np
import pytest
import tensorrt
from fake_driver.stand_in import StandIn
from fake_tensorrt import NEEDED, STREAMING, store_plan

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.driver import driver
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.trt import loaded_plan
from vexpress_trt.engines.trt.flavour import TENSORRT, TensorRt
from vexpress_trt.engines.trt.profile import ProfileSettings
from vexpress_trt.engines.trt.store import EngineStore, StoredEngine
from vexpress_trt.models.box.box import shipped_bundle
from vexpress_trt.models.box.clip_request import clip_request
from vexpress_trt.models.box.held_out import HeldOutClip
from vexpress_trt.runtime import GenerationRequest, generate
from vexpress_trt.runtime.cuda.budget import CONTEXT
from vexpress_trt.runtime.engine_pool import EnginePool

WEIGHTS = 20_000_000  # bytes of the denoiser's plan
STREAMABLE = 19_000_000


def planned(root: Path, *options: str) -> Bundle:
    """The bundle in the box with engines of which the working memory is known."""
    bundle = Bundle.open(shutil.copytree(shipped_bundle(), root))
    about = TensorRt(TENSORRT, tensorrt, "11.4")
    for graph in {spec.name for spec in bundle.manifest.graphs}:
        size, streaming = (WEIGHTS, STREAMABLE) if graph.startswith("denoiser") else (1000, 900)
        more = {"streaming": streaming if options else 0, "padding": "x" * size}
        store_plan(bundle, about, graph, settings=ProfileSettings(), options=options, **more)
    store = EngineStore(bundle)
    for stored in store.all():
        store.put(stored.sidecar.key, stored.plan.read_bytes(), {"working_bytes": NEEDED}, stored.sidecar.bindings)
    return bundle


@pytest.fixture(scope="module")
def request_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., GenerationRequest]:
    """A short clip on the GPU."""
    folder = tmp_path_factory.mktemp("clip")

    def make(bundle: Bundle, **more: object) -> GenerationRequest:
        return clip_request(
            HeldOutClip(0), folder, bundle=bundle.root, backend="tensorrt", device="cuda", threads=1,
            num_inference_steps=1, **more,
        )  # fmt: skip

    return make


def frames(request: GenerationRequest, pool: EnginePool | None = None) -> np.ndarray:
    return np.stack([frame.image for frame in generate(request, engines=pool)])


def megabytes(size: int) -> str:
    return f"{size / 2**20:.4f}MB"


def test_weights_stream_only_where_the_budget_asks_for_it_and_frames_are_the_same(
    request_of: Callable, tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    usual = request_of(planned(tmp_path / "x.bundle", "weight_streaming"))
    streamed: dict[str, int] = {}
    measure = loaded_plan.limit_weights

    def limit(engine: fake_tensorrt.ICudaEngine, stored: StoredEngine, budget: int | None) -> int:
        kept = measure(engine, stored, budget)
        if kept < stored.plan.stat().st_size:
            streamed[stored.sidecar.key.graph] = stored.plan.stat().st_size - kept
        return kept

    monkeypatch.setattr(loaded_plan, "limit_weights", limit)
    expected = frames(usual)
    need = generate(replace(usual, gpu_memory="2GB"))._prepared.gpu_need
    assert not streamed
    np.testing.assert_array_equal(frames(replace(usual, gpu_memory=megabytes(need.total - 10_000_000))), expected)
    assert streamed == {"denoiser_guided": pytest.approx(10_000_000 + STREAMING, abs=5000)}
    assert "of the weights stay in the host's memory" in caplog.text


def test_engines_that_cannot_stream_are_refused_before_anything_is_loaded(
    request_of: Callable, tmp_path: Path, stand_in: StandIn
) -> None:
    usual = request_of(planned(tmp_path / "x.bundle"))
    need = generate(replace(usual, gpu_memory="2GB"))._prepared.gpu_need
    assert need.least == need.total and CONTEXT + WEIGHTS < need.total < CONTEXT + 2 * WEIGHTS
    with pytest.raises(UserError, match="engines of `vexpress build --weight_streaming --force` keep weights in"):
        generate(replace(usual, gpu_memory=megabytes(need.total - 10_000_000)))


def test_what_earlier_clips_left_is_freed_and_what_was_taken_is_told(
    request_of: Callable, tmp_path: Path, stand_in: StandIn, caplog
) -> None:
    usual = request_of(planned(tmp_path / "x.bundle"))
    with EnginePool() as pool:
        frames(usual, pool)
        assert len(pool) > 0
        generation = generate(replace(usual, gpu_memory="2GB"), engines=pool)
        running = iter(generation)
        next(running)
        assert len(pool) == 0 and "exceeded" not in caplog.text
        with driver(0).current():
            other = driver(0).mem_alloc(2 << 30, "another program")
        list(running)
        with driver(0).current():
            driver(0).mem_free(other)
    assert "--gpu_memory is exceeded: this process has 2.4 GiB on the GPU, by what is gone" in caplog.text
    assert generation.summary.peak_gpu_memory_mib > 2048
