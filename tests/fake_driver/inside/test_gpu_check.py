"""The GPU check's parts for TensorRT, with a stand-in of TensorRT whose engines need no building."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fake_tensorrt
import pytest
import tensorrt
from fake_tensorrt import store_plan

from vexpress_trt.bench.gpu_check import full_plan, plans
from vexpress_trt.bench.gpu_check.apart import run_part
from vexpress_trt.bench.gpu_check.parts import Setting
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.trt.build import BuildSettings
from vexpress_trt.engines.trt.flavour import TENSORRT, TensorRt
from vexpress_trt.engines.trt.profile import ProfileSettings
from vexpress_trt.models.box.box import shipped_bundle

SETTING = Setting(Path(), quick=True)


def stored(settings: BuildSettings) -> SimpleNamespace:
    """What `build_engines` leaves and tells."""
    bundle = Bundle.open(settings.bundle)
    for graph in (names := settings.graphs or tuple(spec.name for spec in bundle.manifest.graphs)):
        store_plan(bundle, TensorRt(TENSORRT, tensorrt, "11.4"), graph, settings=ProfileSettings())
    engines = [SimpleNamespace(graph=name, seconds=1.0, plan_bytes=1 << 20) for name in names]
    return SimpleNamespace(engines=engines, precision="fp32")


@pytest.fixture(autouse=True)
def one_flavour(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX is installed where the tests run, and is none to run on a stand-in."""
    monkeypatch.setattr(plans, "PLANNED", ("tensorrt",))
    for module in (plans, full_plan):
        monkeypatch.setattr(module, "build_engines", stored)


def test_all_graphs_and_a_clip_are_looked_at(tmp_path: Path) -> None:
    run_part("tensorrt", SETTING, tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["tensorrt"] == {"version": "11.4", "builds for": "sm89"}
    graphs = {spec.name for spec in Bundle.open(shipped_bundle()).manifest.graphs}
    for graph in graphs:
        one = found[f"tensorrt, fp32, {graph}"]
        assert one["snr_db"] > 100 and one["captured"] and one["captured_equals_enqueued"] and one["ms"] >= 0
    assert found["tensorrt, fp32, clip"]["psnr_to_the_cpu_db"] > 60
    assert found["tensorrt, fp32, clip"]["backend"].startswith("tensorrt")
    assert found["skipped fp16"] == "its graphs are not exported: --quick"


def test_an_engine_that_gives_other_numbers_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fake_tensorrt.ICudaEngine.__init__

    def other(engine: object, *given: object) -> None:
        plain(engine, *given)
        run = engine._engine.run
        engine._engine.run = lambda **arrays: {name: 1.02 * array for name, array in run(**arrays).items()}

    monkeypatch.setattr(fake_tensorrt.ICudaEngine, "__init__", other)
    bundle = Bundle.open(shutil.copytree(shipped_bundle(), tmp_path / "box.bundle"))
    stored(BuildSettings(bundle.root))
    found, wrong = plans.compare(bundle, "tensorrt", bundle.graph("kps_guider", "fp32"))
    assert found["captured_equals_enqueued"]
    assert wrong == ["34.0 dB from onnxruntime in FP32, 40 are needed"]


def test_a_denoiser_is_timed_at_its_bundles_size(tmp_path: Path) -> None:
    root = shutil.copytree(shipped_bundle(), tmp_path / "box.bundle")
    run_part("full_tensorrt", replace(SETTING, bundle=root), tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["sizes"] == {"B": 1, "F": 24, "h": 16, "w": 16}
    assert found["tensorrt, fp32"]["captured_equals_enqueued"] and found["tensorrt, fp32"]["tflops"] > 0
