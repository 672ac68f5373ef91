"""Engines are loaded when needed or ahead, used once, and freed whatever happens."""

import threading
from pathlib import Path

import pytest

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.engine import CancelledError, Engine, load_engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.selection import choose_engines
from vexpress_trt.engines.verify import vector_inputs
from vexpress_trt.runtime import engine_loader as module
from vexpress_trt.runtime.engine_loader import EngineLoader
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


def test_after_cancelling_an_engine_refuses_to_run(loader: EngineLoader) -> None:
    with loader:
        loader.prefetch("kps_guider", **SIZES)
        loader.cancel()
        with loader.use("kps_guider") as engine, pytest.raises(CancelledError):
            engine.run(**vector_inputs(engine.spec, SIZES))


def test_sizes_that_do_not_give_all_shapes_are_an_error(loader: EngineLoader) -> None:
    with loader, loader.use("kps_guider") as engine:
        with pytest.raises(ValueError, match="kps_guider: the sizes of N do not give"):
            engine.prepare(N=2)
        engine.prepare(**SIZES)
        outputs = engine.run(**vector_inputs(engine.spec, SIZES))
    assert outputs["feature"].shape == (2, 32, 3, 4)
