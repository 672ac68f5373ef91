"""The fastest of several builds is kept, and what a builder measured serves the next one."""

import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import fake_tensorrt
import pytest
from fake_tensorrt import HostDriver, store_plan

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.trt import build as build_module
from vexpress_trt.engines.trt import timing, timing_cache, working_memory
from vexpress_trt.engines.trt.build import BuildSettings, build_engines
from vexpress_trt.engines.trt.builder import Build, BuildOptions, Plan, shared_log
from vexpress_trt.engines.trt.flavour import RTX, TENSORRT, TensorRt
from vexpress_trt.engines.trt.foresight import Need
from vexpress_trt.engines.trt.key import Sidecar
from vexpress_trt.engines.trt.profile import ProfileSettings
from vexpress_trt.engines.trt.timing_cache import TimingCache


@pytest.fixture
def machine(gpu: HostDriver, monkeypatch: pytest.MonkeyPatch) -> HostDriver:
    """The GPU that is played, for a build by a builder that is played as well."""
    tensorrt = TensorRt(TENSORRT, sys.modules["fake_tensorrt"], "11.4")
    monkeypatch.setattr(build_module, "load_tensorrt", lambda backend: tensorrt)
    for module in (timing, working_memory, build_module):
        monkeypatch.setattr(module, "driver", lambda index: gpu)
    monkeypatch.setattr(build_module, "least_working_memory", lambda *about: Need(0, "nothing"))
    card = SimpleNamespace(devices=(SimpleNamespace(name="NVIDIA H100 80GB"),), cuda="13.0")
    for module in (timing_cache, build_module):
        monkeypatch.setattr(module, "gpu_status", lambda: card)
    return gpu


def test_the_fastest_of_three_is_kept_with_the_times_of_all(bundle: Bundle, machine, monkeypatch) -> None:
    settings = ProfileSettings(image_width=72, image_height=64)
    sample = store_plan(bundle, TensorRt(TENSORRT, fake_tensorrt, "11.4"), "vae_decoder", settings=settings)
    plans = iter(sample.read_bytes().replace(b"}", b', "number": %d}' % number) for number in range(3))
    caches = []

    def run(self: Build, *about) -> Plan:
        caches.append(self._timing_cache)
        return Plan(next(plans), ())

    monkeypatch.setattr(Build, "run", run)
    speeds = iter([5.0] * 20 + [3.0] * 20 + [4.0] * 20)
    monkeypatch.setattr(machine, "milliseconds", lambda stream, body: body() or next(speeds))
    report = build_engines(BuildSettings(bundle.root, TENSORRT, builds=3, profile=settings, force=True))
    plan = bundle.path(report.engines[0].path)
    assert b'"number": 1' in plan.read_bytes()
    sidecar = Sidecar.from_json(plan.with_suffix(".json").read_text(), "x")
    assert sidecar.built["milliseconds"] == [5.0, 3.0, 4.0]
    assert working_memory.recorded(sidecar) == fake_tensorrt.NEEDED
    assert (
        fake_tensorrt.Runtime.deserialised == ["vae_decoder"] * 3
    )  # once each: a run tells the working memory as well
    assert caches == [None] * 3  # with timings of the first, all would be the same
    assert not machine.memory and not machine.streams
    assert not list(bundle.root.glob("**/.*.tmp*"))


def test_an_rtx_engine_for_this_gpu_is_built_for_its_capability(bundle: Bundle, machine, monkeypatch) -> None:
    tensorrt = TensorRt(RTX, sys.modules["fake_tensorrt"], "11.4")
    monkeypatch.setattr(build_module, "load_tensorrt", lambda backend: tensorrt)
    given = []
    monkeypatch.setattr(Build, "run", lambda self, *about: given.append(about[3]) or Plan(b"no plan", ()))
    report = build_engines(BuildSettings(bundle.root, RTX))
    assert [options.targets for options in given] == [("sm89",)] and report.targets == ("sm89",)


def test_the_plan_for_this_gpu_is_the_plan_for_its_capability(
    rtx: TensorRt, bundle: Bundle, machine, monkeypatch
) -> None:
    """By the real builder: plans for two capabilities differ."""
    monkeypatch.setattr(build_module, "load_tensorrt", lambda backend: rtx)

    def plan(capability: str | None, *targets: str) -> bytes:
        if capability is not None:
            monkeypatch.setattr(build_module, "targets_here", lambda *about: (capability,))
        settings = BuildSettings(bundle.root, RTX, options=BuildOptions(targets), force=True)
        return bundle.path(build_engines(settings).engines[0].path).read_bytes()

    assert plan("sm75") == plan(None, "sm75") != plan("sm89")


def test_the_chosen_gpu_is_current_where_the_builder_runs(bundle: Bundle, machine, monkeypatch) -> None:
    asked, inside, seen = [], [], []

    @contextmanager
    def current():
        inside.append(threading.current_thread().name)
        yield
        inside.pop()

    monkeypatch.setattr(machine, "current", current)
    monkeypatch.setattr(build_module, "targets_here", lambda tensorrt, gpu_id: ("sm89",))
    monkeypatch.setattr(build_module, "driver", lambda index: asked.append(index) or machine)
    monkeypatch.setattr(timing_cache.gpu_status(), "devices", timing_cache.gpu_status().devices * 2)
    monkeypatch.setattr(
        build_module, "least_working_memory", lambda *about: seen.append(list(inside)) or Need(0, "nothing")
    )
    monkeypatch.setattr(Build, "run", lambda self, *about: seen.append(list(inside)) or Plan(b"no plan", ()))
    build_engines(BuildSettings(bundle.root, TENSORRT, gpu_id=1))
    assert asked == [1] and seen == [["MainThread"], ["tensorrt-build"]]


def test_a_gpu_that_cannot_be_used_is_found_out_before_the_first_build(bundle: Bundle, machine, monkeypatch) -> None:
    def driver(index: int) -> HostDriver:
        raise UserError("a GPU needs cuda-bindings")

    monkeypatch.setattr(build_module, "driver", driver)
    monkeypatch.setattr(Build, "run", lambda self, *about: pytest.fail("it was built"))
    with pytest.raises(UserError, match="a GPU needs cuda-bindings"):
        build_engines(BuildSettings(bundle.root, TENSORRT, builds=2))


def test_an_engine_of_another_workspace_is_taken_and_said(bundle: Bundle, machine, monkeypatch) -> None:
    monkeypatch.setattr(Build, "run", lambda self, *about: Plan(b"no plan", ()))
    build_engines(BuildSettings(bundle.root, TENSORRT, options=BuildOptions(workspace=1 << 30)))
    report = build_engines(BuildSettings(bundle.root, TENSORRT, options=BuildOptions(workspace=2 << 30)))
    assert report.engines[0].already_there
    assert "built with --workspace 1; --force builds it anew" in report.as_text()


def test_a_failed_build_says_what_it_took(bundle: Bundle, machine, monkeypatch) -> None:
    def run(self: Build, *about) -> Plan:
        raise UserError("no kernel")

    monkeypatch.setattr(Build, "run", run)
    with pytest.raises(UserError, match=r"no kernel \(after 0 s, peak memory \d+ MiB\)"):
        build_engines(BuildSettings(bundle.root, TENSORRT))


def test_one_build_uses_the_timings_of_this_version_and_gpu(bundle: Bundle, machine, monkeypatch, tmp_path) -> None:
    used = []
    monkeypatch.setattr(Build, "run", lambda self, *about: used.append(self._timing_cache.path) or Plan(b"no plan", ()))
    build_engines(BuildSettings(bundle.root, TENSORRT, timing_cache=tmp_path / "kept"))
    build_engines(BuildSettings(bundle.root, TENSORRT, force=True))
    assert used[0] == tmp_path / "kept" / "tensorrt-11.4-NVIDIA-H100-80GB.timing"
    assert used[1].name == used[0].name and used[1].parent.name == "timing"


@pytest.mark.filterwarnings("ignore:.*no-ops in TensorRT-RTX")
def test_real_bindings_take_and_give_timings(rtx: TensorRt, bundle: Bundle, tmp_path: Path, monkeypatch) -> None:
    """TensorRT-RTX's, where timings mean nothing, but which are the same classes."""
    spec = bundle.graph("vae_decoder", "fp32")
    cache = TimingCache(tmp_path / "new" / "x.timing")
    profile = ProfileSettings().of(spec, bundle.manifest.model)
    for _ in range(2):  # without a file, then with the one before
        Build(rtx, timing_cache=cache).run(bundle.path(spec.path), spec, profile, BuildOptions(("sm89",)))
    assert cache.path.stat().st_size > 0
    cache.path.write_bytes(b"no timings")
    Build(rtx, timing_cache=cache).run(bundle.path(spec.path), spec, profile, BuildOptions(("sm89",)))
    assert cache.path.stat().st_size > 10


@pytest.mark.filterwarnings("ignore:.*no-ops in TensorRT-RTX")
def test_an_engine_is_kept_where_its_timings_cannot_be(rtx: TensorRt, bundle: Bundle, tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("")
    spec = bundle.graph("vae_decoder", "fp32")
    profile = ProfileSettings().of(spec, bundle.manifest.model)
    build = Build(rtx, timing_cache=TimingCache(tmp_path / "file" / "x.timing"))
    assert build.run(bundle.path(spec.path), spec, profile, BuildOptions(("sm89",))).data is not None
    assert "what this build measured is not kept: cannot write" in caplog.text


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = SimpleNamespace(get_timing_cache=lambda: None)
    with pytest.raises(UserError, match="cannot write .*x.timing .*: name another folder with --timing_cache"):
        TimingCache(tmp_path / "file" / "x.timing").keep(config)


def test_timings_that_do_not_fit_are_not_called_the_reason_of_a_failure(
    bundle: Bundle, flavoured: TensorRt, tmp_path: Path, monkeypatch
) -> None:
    def complain(line: str) -> None:
        shared_log(fake_tensorrt).log(fake_tensorrt.ILogger.ERROR, line)

    monkeypatch.setattr(TimingCache, "attach", lambda self, config: complain("timings of another GPU"))
    monkeypatch.setattr(fake_tensorrt.Builder, "build_serialized_network", lambda *about: complain("no room"))
    spec = bundle.graph("vae_decoder", "fp32")
    profile = ProfileSettings().of(spec, bundle.manifest.model)
    build = Build(flavoured, timing_cache=TimingCache(tmp_path / "x.timing"))
    with pytest.raises(UserError, match="could not build vae_decoder: no room$"):
        build.run(bundle.path(spec.path), spec, profile, BuildOptions())


def test_rtx_has_no_use_for_either(rtx: TensorRt, bundle: Bundle, tmp_path: Path) -> None:
    for more in ({"builds": 2}, {"timing_cache": tmp_path}):
        with pytest.raises(UserError, match="TensorRT-RTX chooses its kernels when the engine is loaded"):
            build_engines(BuildSettings(bundle.root, RTX, options=BuildOptions(("sm89",)), **more))
