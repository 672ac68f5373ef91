"""Engines are loaded when needed or ahead, used once, and freed whatever happens."""

import threading
from collections.abc import Iterator
from pathlib import Path
from weakref import ref

import pytest

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.engine import CancelledError, Engine, load_engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.selection import choose_engines
from vexpress_trt.engines.verify import vector_inputs
from vexpress_trt.runtime import engine_loader as module
from vexpress_trt.runtime.engine_loader import EngineLoader
from vexpress_trt.runtime.engine_pool import EnginePool
from vexpress_trt.runtime.summary import Stopwatch

SIZES = {"N": 2, "h": 3, "w": 4}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Engine, str]]:
    """(graph, engine, thread) of everything that was loaded."""
    record: list[tuple[str, Engine, str]] = []

    def load(bundle: Bundle, graph: str, **settings) -> Engine:
        engine = load_engine(bundle, graph, **settings)
        record.append((graph, engine, threading.current_thread().name))
        return engine

    monkeypatch.setattr(module, "load_engine", load)
    return record


@pytest.fixture(params=["onnxruntime", "openvino"])
def loader(request: pytest.FixtureRequest, other_bundle: Path) -> EngineLoader:
    bundle = Bundle.open(other_bundle)
    return EngineLoader(bundle, choose_engines(bundle, backend=request.param, dtype="fp32"), Stopwatch(), threads=1)


def test_what_was_loaded_ahead_is_what_is_used(loader: EngineLoader, loads: list) -> None:
    with loader:
        loader.prefetch("kps_guider", **SIZES)
        with loader.use("kps_guider") as engine:
            assert engine.run(**vector_inputs(engine.spec, SIZES))["feature"].shape == (2, 32, 3, 4)
        assert [(graph, loaded is engine) for graph, loaded, _ in loads] == [("kps_guider", True)]
        assert loads[0][2].startswith("load-engine")
        with loader.use("kps_guider") as again:  # it was freed after its stage
            assert again is not engine
    assert all(engine._closed for _, engine, _ in loads)


def test_what_was_loaded_ahead_in_vain_is_freed(loader: EngineLoader, loads: list) -> None:
    with pytest.raises(RuntimeError, match="elsewhere"), loader:
        loader.prefetch("kps_guider", **SIZES)
        raise RuntimeError("elsewhere")
    assert all(engine._closed for _, engine, _ in loads)


def test_a_load_that_fails_is_told_to_who_needs_it(loader: EngineLoader) -> None:
    with loader:
        loader.prefetch("kps_guiders", **SIZES)
        with pytest.raises(UserError, match="no graph kps_guiders"), loader.use("kps_guiders"):
            pass
        loader.prefetch("kps_guiders", **SIZES)  # nobody needs it: nobody is told


def test_what_ended_a_stage_is_told_where_freeing_its_engine_fails_too(
    loader: EngineLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with loader, pytest.raises(UserError, match="the first"), loader.use("kps_guider") as engine:
        monkeypatch.setattr(engine, "_release", fail)
        raise UserError("the first")


def test_after_cancelling_an_engine_refuses_to_run(loader: EngineLoader) -> None:
    with loader:
        loader.prefetch("kps_guider", **SIZES)
        loader.cancel()
        with loader.use("kps_guider") as engine, pytest.raises(CancelledError):
            engine.run(**vector_inputs(engine.spec, SIZES))


@pytest.fixture
def pooled(other_bundle: Path) -> Iterator[EngineLoader]:
    bundle, pool = Bundle.open(other_bundle), EnginePool()
    choice = choose_engines(bundle, backend="torch", dtype="fp32")
    with pool, EngineLoader(bundle, choice, Stopwatch(), threads=1, pool=pool) as loader:
        yield loader


@pytest.mark.parametrize("left", [CancelledError, GeneratorExit])
def test_an_engine_of_torch_whose_clip_is_left_serves_the_next(
    left: type[BaseException], pooled: EngineLoader, loads: list
) -> None:
    with pytest.raises(left), pooled.use("kps_guider"):
        pooled._in_use.copy().pop().cancel()
        raise left
    with pooled.use("kps_guider") as engine:
        assert engine.run(**vector_inputs(engine.spec, SIZES))["feature"].shape == (2, 32, 3, 4)
    assert [loaded is engine for _, loaded, _ in loads] == [True]


def test_a_stage_that_fails_frees_what_waits_as_well(pooled: EngineLoader, loads: list) -> None:
    """Else the next clip would find as little memory, and so on."""
    with pooled.use("kps_guider"):
        pass
    with pytest.raises(UserError, match="memory"), pooled.use("audio_projection"):
        raise UserError("there is not enough memory")
    assert len(pooled._pool) == 0 and all(engine._closed for _, engine, _ in loads)


def test_an_engine_that_cannot_be_made_ready_ahead_is_freed_with_those_that_wait(
    pooled: EngineLoader, loads: list
) -> None:
    with pooled.use("kps_guider"):
        pass
    pooled.prefetch("audio_projection", h=3)
    with pytest.raises(ValueError, match="do not give the shapes"), pooled.use("audio_projection"):
        pass
    assert len(pooled._pool) == 0 and [engine._closed for _, engine, _ in loads] == [True, True]


def test_where_an_engine_does_not_fit_beside_those_that_wait_they_are_freed(
    pooled: EngineLoader, loads: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pooled.use("kps_guider") as waiting:
        pass
    load, half_loaded = module.load_engine, []

    class Weights:
        pass

    def fits_alone(bundle: Bundle, graph: str, **settings) -> Engine:
        if not waiting._closed:
            weights = Weights()
            half_loaded.append(ref(weights))
            raise UserError("there is not enough memory")
        assert half_loaded[0]() is None, "what was loaded in vain is freed first"
        return load(bundle, graph, **settings)

    monkeypatch.setattr(module, "load_engine", fits_alone)
    with pooled.use("audio_projection") as engine:
        assert not engine._closed
    with pytest.raises(UserError, match="has no graph"), pooled.use("audio_projections"):
        pass


class RecordedShares:
    """Gives every engine its number in bytes."""

    def __init__(self) -> None:
        self.events: list[tuple] = []

    def of(self, graph: str, *, told: bool) -> int:
        self.events.append(("asked", graph, told))
        return 1000 + len(self.events)

    def loaded(self, graph: str, engine: Engine) -> None:
        self.events.append(("loaded", graph))

    def freed(self, graph: str) -> None:
        self.events.append(("freed", graph))


def test_each_engine_is_loaded_within_its_share_and_gives_it_back(
    other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def load(bundle: Bundle, graph: str, *, gpu_memory: int, **settings) -> Engine:
        given.append((graph, gpu_memory))
        return load_engine(bundle, graph, gpu_memory=gpu_memory, **settings)

    monkeypatch.setattr(module, "load_engine", load)
    bundle, shares = Bundle.open(other_bundle), RecordedShares()
    choice, looks = choose_engines(bundle, backend="onnxruntime", dtype="fp32"), []
    watching = {"look": lambda: looks.append(list(shares.events))}
    with EngineLoader(bundle, choice, Stopwatch(), threads=1, shares=shares, **watching) as loader:
        with loader.use("kps_guider"):
            pass
        with pytest.raises(KeyError), loader.use("vae_decoder"):
            raise KeyError
    assert given == [("kps_guider", 1001), ("vae_decoder", 1004)]
    one, other = (
        [("asked", graph, False), ("loaded", graph), ("freed", graph)] for graph in ("kps_guider", "vae_decoder")
    )
    assert shares.events == one + other and looks == [one[:2]]


def test_engines_of_a_pool_have_no_shares(other_bundle: Path) -> None:
    bundle = Bundle.open(other_bundle)
    choice = choose_engines(bundle, backend="onnxruntime", dtype="fp32")
    with pytest.raises(ValueError, match="were loaded without a limit"), EnginePool() as pool:
        EngineLoader(bundle, choice, Stopwatch(), pool=pool, shares=RecordedShares())


def test_sizes_that_do_not_give_all_shapes_are_an_error(loader: EngineLoader) -> None:
    with loader, loader.use("kps_guider") as engine:
        with pytest.raises(ValueError, match="kps_guider: the sizes of N do not give"):
            engine.prepare(N=2)
        engine.prepare(**SIZES)
        outputs = engine.run(**vector_inputs(engine.spec, SIZES))
    assert outputs["feature"].shape == (2, 32, 3, 4)
