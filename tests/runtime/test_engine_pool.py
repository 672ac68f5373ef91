"""Engines kept from clip to clip: loaded once, the same frames as from fresh ones, nothing kept that must not be."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs media input")
pytest.importorskip("diffusers", reason="needs the export extra")

from media import write_inputs  # noqa: E402

from vexpress_trt.engines.bundle import Bundle  # noqa: E402
from vexpress_trt.engines.engine import Engine, load_engine  # noqa: E402
from vexpress_trt.engines.selection import choose_engines  # noqa: E402
from vexpress_trt.engines.verify import vector_inputs  # noqa: E402
from vexpress_trt.runtime import GenerationRequest, engine_loader, generate  # noqa: E402
from vexpress_trt.runtime.engine_pool import EnginePool, engine_key  # noqa: E402

GRAPHS = {
    "vae_encoder",
    "reference",
    "audio_encoder",
    "audio_projection",
    "kps_guider",
    "denoiser_guided",
    "vae_decoder",
}
SIZES = {"N": 2, "h": 3, "w": 4}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    """Every engine that a clip had to load."""
    record: list[Engine] = []

    def load(bundle: Bundle, graph: str, **settings) -> Engine:
        record.append(load_engine(bundle, graph, **settings))
        return record[-1]

    monkeypatch.setattr(engine_loader, "load_engine", load)
    return record


@pytest.fixture(params=["onnxruntime", "openvino"])
def request_of_a_clip(request: pytest.FixtureRequest, other_bundle: Path, tmp_path: Path) -> GenerationRequest:
    return GenerationRequest(
        **write_inputs(tmp_path),
        bundle=other_bundle,
        backend=request.param,
        dtype="fp32",
        num_inference_steps=2,
        fps=25.0,
        portrait_cache="off",
        threads=1,
    )


def pictures(request: GenerationRequest, pool: EnginePool | None = None) -> np.ndarray:
    return np.stack([frame.image for frame in generate(request, engines=pool)])


def test_the_second_clip_loads_nothing_and_has_the_frames_of_fresh_engines(
    request_of_a_clip: GenerationRequest, loads: list[Engine]
) -> None:
    other = replace(request_of_a_clip, seed=7, fps=20.0)  # sixteen frames instead of twenty: other shapes everywhere
    expected = pictures(request_of_a_clip), pictures(other)
    loads.clear()
    with EnginePool() as pool:
        assert np.array_equal(pictures(request_of_a_clip, pool), expected[0])
        assert {engine.spec.name for engine in loads} == GRAPHS and len(pool) == len(loads) == len(GRAPHS)
        assert np.array_equal(pictures(other, pool), expected[1])
        assert np.array_equal(pictures(request_of_a_clip, pool), expected[0])
        assert len(loads) == len(GRAPHS)
    assert all(engine._closed for engine in loads) and len(pool) == 0


def test_a_clip_that_is_left_frees_what_it_was_using(request_of_a_clip: GenerationRequest, loads: list[Engine]) -> None:
    with EnginePool() as pool:
        expected = pictures(request_of_a_clip, pool)
        with closing(iter(generate(request_of_a_clip, engines=pool))) as frames:
            next(frames)
        assert sum(not engine._closed for engine in loads) == len(pool) < len(GRAPHS)
        assert np.array_equal(pictures(request_of_a_clip, pool), expected)


def test_saving_memory_keeps_nothing(request_of_a_clip: GenerationRequest, loads: list[Engine]) -> None:
    with EnginePool() as pool:
        pictures(request_of_a_clip, pool)
        kept = list(loads)
        frames = iter(generate(replace(request_of_a_clip, save_gpu_memory=True), engines=pool))
        next(frames)
        assert len(pool) == 0 and all(engine._closed for engine in kept), "what earlier clips have left is freed first"
        frames.close()
        pictures(replace(request_of_a_clip, save_gpu_memory=True), pool)
        assert len(pool) == 0 and all(engine._closed for engine in loads)


def test_one_engine_for_each_graph_and_never_a_foreign_one(other_bundle: Path) -> None:
    bundle = Bundle.open(other_bundle)
    choice = choose_engines(bundle, backend="onnxruntime", dtype="fp32")
    keys = [engine_key(bundle, "kps_guider", choice, threads) for threads in (1, 2)]
    engines = [load_engine(bundle, "kps_guider", backend="onnxruntime", precision="fp32", threads=n) for n in (1, 2)]
    with EnginePool() as pool:
        pool.give(keys[0], engines[0])
        pool.give(keys[1], engines[1])
        assert engines[0]._closed and pool.take(keys[1]) is engines[1] and pool.take(keys[1]) is None
        pool.give(keys[1], engines[1])
        assert pool.take(keys[0]) is None and engines[1]._closed


def test_an_engine_that_waits_has_nothing_bound(other_bundle: Path) -> None:
    bundle = Bundle.open(other_bundle)
    key = engine_key(bundle, "kps_guider", choose_engines(bundle, backend="onnxruntime"), None)
    engine = load_engine(bundle, "kps_guider", backend="onnxruntime", precision="fp32", threads=1)
    with EnginePool() as pool:
        engine.run(**vector_inputs(engine.spec, SIZES))
        pool.give(key, engine)
        with pytest.raises(ValueError, match="inputs not bound"):
            pool.take(key).run()
        engine.cancel()
        pool.give(key, engine)
        assert len(pool) == 0 and engine._closed


def test_an_engine_that_was_cancelled_while_it_waited_is_not_given_out(other_bundle: Path) -> None:
    bundle = Bundle.open(other_bundle)
    key = engine_key(bundle, "kps_guider", choose_engines(bundle, backend="onnxruntime"), None)
    engine = load_engine(bundle, "kps_guider", backend="onnxruntime", precision="fp32", threads=1)
    with EnginePool() as pool:
        pool.give(key, engine)
        engine.cancel()
        assert pool.take(key) is None and engine._closed


def test_what_is_given_to_a_closed_pool_is_freed(other_bundle: Path) -> None:
    bundle = Bundle.open(other_bundle)
    key = engine_key(bundle, "kps_guider", choose_engines(bundle, backend="onnxruntime"), None)
    pool = EnginePool()
    pool.close()
    engine = load_engine(bundle, "kps_guider", backend="onnxruntime", precision="fp32", threads=1)
    pool.give(key, engine)
    assert engine._closed
