"""TensorRT-RTX with a bundle that it can build in seconds, and a machine that is played: GPU, TensorRT, builder."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import fake_tensorrt
import numpy as np
import pytest
from exported import export_once

from vexpress_trt.engines import selection
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.gpu import Gpu, GpuStatus
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.trt import engine as engine_module
from vexpress_trt.engines.trt import fitting, flavour, momentary, preflight, probe, timing_cache
from vexpress_trt.engines.trt.builder import Build
from vexpress_trt.engines.trt.flavour import RTX, TENSORRT, TensorRt, load_tensorrt
from vexpress_trt.engines.trt.key import Binding
from vexpress_trt.engines.trt.store import EngineStore


@pytest.fixture(scope="session")
def rtx() -> TensorRt:
    """TensorRT-RTX, which builds engines without a GPU; tests skip where it is not installed."""
    if not any(find_spec(name) for name in ("tensorrt_rtx", "tensorrt_rtx_bindings")):
        pytest.skip("tensorrt_rtx_cu13_bindings is not installed (it is part of the test extra on x86-64 Linux)")
    return load_tensorrt(RTX)


@pytest.fixture(scope="session")
def typed_bundle(rtx: TensorRt, tmp_path_factory: pytest.TempPathFactory, other_checkpoints: Path) -> Path:
    """All graphs of a network with two levels, in FP16 and BF16: 64x64, 4 frames per window. Takes two minutes.

    Without the check against the torch modules, which the exporter's own tests make: only builders read these graphs.
    """
    pytest.importorskip("torch")
    from vexpress_trt.engines.verify import ParityResult
    from vexpress_trt.export import parity

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            parity, "check_graph", lambda _, spec: ParityResult(spec.name, spec.precision, "none", "", 0.0, 0.0, 0.0)
        )
        target = tmp_path_factory.mktemp("typed") / "typed.bundle"
        return export_once(other_checkpoints, target, width=64, height=64, frames=4, precisions=("fp16", "bf16"))


@pytest.fixture
def fresh_bundle(typed_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `typed_bundle` without engines. No links: ONNX refuses weights that have another name."""
    return shutil.copytree(typed_bundle, tmp_path / "fresh.bundle", ignore=shutil.ignore_patterns("engines"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> fake_tensorrt.HostDriver:
    """A machine with one GPU (sm89) and both TensorRTs, all played on the CPU; both are of version 11.4 there."""
    from vexpress_trt.engines.trt.scratch import Scratch

    status = GpuStatus("13.0", (Gpu(0, "stand-in", 8 << 30, (8, 9)),), "")
    for module in (preflight, selection, flavour):
        monkeypatch.setattr(module, "gpu_status", lambda: status)
    versions = {name: "11.4" for name in ("tensorrt", "tensorrt_rtx", "cuda-bindings", "onnxruntime", "openvino")}
    monkeypatch.setattr(
        selection, "package_version", lambda *names: next((versions[name] for name in names if name in versions), None)
    )
    monkeypatch.setattr(TensorRt, "cuda_major", 13)
    monkeypatch.setattr(fitting, "load_tensorrt", lambda backend: TensorRt(backend, fake_tensorrt, "11.4"))
    host = fake_tensorrt.HostDriver()
    shared = Scratch(host)
    monkeypatch.setattr(engine_module, "driver", lambda index: host)
    monkeypatch.setattr(engine_module, "scratch", lambda index: shared)
    monkeypatch.setattr(fake_tensorrt.Runtime, "deserialised", [])
    monkeypatch.setattr(fake_tensorrt.IExecutionContext, "runs", [])
    return host


@pytest.fixture
def machine(gpu: fake_tensorrt.HostDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> fake_tensorrt.HostDriver:
    """The GPU that is played, with a builder that is played as well, and a folder of its own for what is temporary."""
    for module in (probe, momentary):
        monkeypatch.setattr(module, "driver", lambda index: gpu)
    card = SimpleNamespace(devices=(SimpleNamespace(name="NVIDIA L4"),), cuda="13.0")
    monkeypatch.setattr(timing_cache, "gpu_status", lambda: card)
    monkeypatch.setattr(fake_tensorrt.Builder, "built", [])
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return gpu


@pytest.fixture
def miscompiled(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def plant(only_fused: bool = False, **operators: str) -> None:
        monkeypatch.setattr(fake_tensorrt.Builder, "miscompiled", operators)
        monkeypatch.setattr(fake_tensorrt.Builder, "only_fused", only_fused)

    return plant


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Build, "run", lambda *given: pytest.fail("it was built"))


@pytest.fixture
def files_at_ctrl_c(machine: fake_tensorrt.HostDriver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Ctrl-C comes while the builder is at work, which looks up at its next step: the temporary files of that moment
    come here."""
    seen: list[Path] = []

    def build(self: fake_tensorrt.Builder, network: object, config: fake_tensorrt.IBuilderConfig) -> None:
        seen.extend((tmp_path / "temporary").iterdir())
        os.kill(os.getpid(), signal.SIGINT)
        while config.progress_monitor.step_complete("tactics", 0):
            time.sleep(0.01)

    monkeypatch.setattr(fake_tensorrt.Builder, "build_serialized_network", build)
    return seen


@pytest.fixture
def ahead(
    rtx: TensorRt, machine: fake_tensorrt.HostDriver, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Binding, ...]]:
    """TensorRT-RTX builds for the GPU that is played and cannot load it: the bindings that it built come here."""
    bindings: list[tuple[Binding, ...]] = []

    class Unloaded:
        def __init__(self, bundle: Bundle, spec: GraphSpec, *, backend: str) -> None:
            (stored,) = EngineStore(bundle).all()
            assert stored.sidecar.plan_size > 10_000
            bindings.append(stored.sidecar.bindings)
            self.spec = spec

        def __enter__(self) -> "Unloaded":
            return self

        def __exit__(self, *about: object) -> None:
            pass

        def run(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
            return {}

    monkeypatch.setattr(momentary, "TensorRtEngine", Unloaded)
    monkeypatch.setattr(fitting, "load_tensorrt", lambda backend: rtx)
    return bindings


@pytest.fixture(params=[TENSORRT, RTX])
def flavoured(request: pytest.FixtureRequest, gpu: fake_tensorrt.HostDriver) -> TensorRt:
    """Each of the two, as that machine has them."""
    return TensorRt(request.param, sys.modules["fake_tensorrt"], "11.4")
