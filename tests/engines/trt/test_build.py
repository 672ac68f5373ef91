"""Real engines, built ahead of time by TensorRT-RTX for GPUs that are not here: what they take is what is declared."""

import json
from pathlib import Path

import pytest

from vexpress_trt import cli
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.dims import evaluate
from vexpress_trt.engines.trt.build import BuildEvent, BuildSettings, build_engines
from vexpress_trt.engines.trt.builder import BuildOptions, Phases
from vexpress_trt.engines.trt.flavour import RTX
from vexpress_trt.engines.trt.inventory import list_engines
from vexpress_trt.engines.trt.key import Sidecar
from vexpress_trt.engines.trt.profile import ProfileSettings
from vexpress_trt.engines.trt.report import BuildReport

TARGETS = ("sm89", "sm120")
pytestmark = pytest.mark.timeout(1200)  # the first one exports the bundle, which a busy machine makes slow
GRAPHS = (
    "audio_encoder audio_projection kps_guider vae_encoder reference denoiser_guided denoiser_single vae_decoder"
).split()
SIZES = {"h": 8, "w": 8, "F": 4, "B": 1, "N": 8}  # of 64x64 pixels and the bundle's windows


@pytest.fixture(scope="session", params=["fp16", "bf16"])
def built(request: pytest.FixtureRequest, typed_bundle: Path) -> tuple[Bundle, BuildReport]:
    """All engines of one precision for two GPUs, in one build."""
    settings = BuildSettings(typed_bundle, RTX, request.param, options=BuildOptions(TARGETS))
    return Bundle.open(typed_bundle), build_engines(settings)


def sidecar_of(bundle: Bundle, plan: str) -> Sidecar:
    path = bundle.path(plan).with_suffix(".json")
    return Sidecar.from_json(path.read_text(), path.name)


def test_every_graph_builds_for_two_targets(built: tuple[Bundle, BuildReport]) -> None:
    bundle, report = built
    assert [engine.graph for engine in report.engines] == GRAPHS
    assert report.targets == TARGETS
    for engine in report.engines:
        assert engine.plan_bytes == bundle.path(engine.path).stat().st_size > 100_000
        assert engine.seconds > 0 and engine.peak_memory_mib > 100


def test_names_types_and_sizes_of_every_engine_are_those_of_the_manifest(built: tuple[Bundle, BuildReport]) -> None:
    bundle, report = built
    for engine in report.engines:
        spec = bundle.graph(engine.graph, report.precision)
        sizes = {**SIZES, "N": 1} if engine.graph == "vae_decoder" else SIZES
        declared = [
            (tensor.name, is_input, tensor.dtype, tuple(evaluate(d, sizes) or -1 for d in tensor.shape))
            for tensors, is_input in ((spec.inputs, True), (spec.outputs, False))
            for tensor in tensors
        ]
        bindings = sidecar_of(bundle, engine.path).bindings
        assert [(b.name, b.is_input, b.dtype, b.shape) for b in bindings] == declared
        plan = bundle.path(engine.path).read_bytes()
        assert all(binding.name.encode() in plan for binding in bindings)


def test_only_the_length_of_the_audio_is_a_range_in_a_static_profile(built: tuple[Bundle, BuildReport]) -> None:
    bundle, report = built
    ranges = {e.graph: any(-1 in b.shape for b in sidecar_of(bundle, e.path).bindings) for e in report.engines}
    assert [graph for graph, ranged in ranges.items() if ranged] == ["audio_encoder"]


def test_what_is_there_is_not_built_again(built: tuple[Bundle, BuildReport]) -> None:
    bundle, report = built
    settings = BuildSettings(bundle.root, RTX, report.precision, options=BuildOptions(TARGETS))
    again = build_engines(settings)
    assert [(engine.already_there, engine.seconds) for engine in again.engines] == [(True, 0.0)] * len(GRAPHS)
    assert [engine.path for engine in again.engines] == [engine.path for engine in report.engines]


@pytest.mark.parametrize("graph", ["audio_encoder", "kps_guider", "denoiser_single", "vae_decoder"])
def test_a_dynamic_profile_leaves_its_ranges_open_and_stands_beside_the_static_one(
    typed_bundle: Path, graph: str
) -> None:
    options = BuildOptions(TARGETS[:1], optimization_level=0)
    static = BuildSettings(typed_bundle, RTX, "fp16", ("kps_guider",), options=options)
    build_engines(static)
    settings = BuildSettings(
        typed_bundle, RTX, "fp16", (graph,), profile=ProfileSettings("dynamic", window_batch=2), options=options
    )
    (engine,) = build_engines(settings).engines
    bundle = Bundle.open(typed_bundle)
    spec = bundle.graph(graph, "fp16")
    for binding, tensor in zip(sidecar_of(bundle, engine.path).bindings, (*spec.inputs, *spec.outputs), strict=True):
        assert [size == -1 for size in binding.shape] == [isinstance(d, str) for d in tensor.shape]
    assert build_engines(static).engines[0].already_there


def test_levels_and_workspace_are_taken_and_levels_are_told_apart(typed_bundle: Path) -> None:
    paths = set()
    for level in (0, 5):
        options = BuildOptions(("sm120",), workspace=1 << 30, optimization_level=level)
        (engine,) = build_engines(BuildSettings(typed_bundle, RTX, "fp16", ("kps_guider",), options=options)).engines
        paths.add(engine.path)
    assert len(paths) == 2


def test_progress_rises_to_the_end_of_every_graph_and_tells_the_time_left(fresh_bundle: Path) -> None:
    events: list[BuildEvent] = []
    graphs = ("reference", "denoiser_single")
    build_engines(BuildSettings(fresh_bundle, RTX, "fp16", graphs, options=BuildOptions(TARGETS)), events.append)
    for number, graph in enumerate(graphs, 1):
        shares = [event.share for event in events if event.graph == graph]
        assert shares == sorted(shares) and (shares[0], shares[-1]) == (0, 1)
        assert {(event.number, event.count) for event in events if event.graph == graph} == {(number, 2)}
    assert any(event.remaining is not None for event in events)
    assert all(event.remaining is None or event.remaining >= 0 for event in events)


def test_nested_phases_are_one_share() -> None:
    phases = Phases()
    phases.start("outer", None, 2)
    phases.start("inner", "outer", 4)
    phases.step("inner", 0)
    assert phases.share() == 1 / 8
    phases.step("inner", 3)
    phases.finish("inner")
    phases.step("outer", 0)
    assert phases.share() == 1 / 2
    phases.start("second", "outer", 2)
    phases.step("second", 0)
    assert phases.share() == 3 / 4


def test_the_command_reports_in_text_and_json(fresh_bundle: Path, tmp_path: Path, capsys) -> None:
    report = tmp_path / "report.json"
    command = ["build", str(fresh_bundle), "--target", "sm89,sm120", "--precision", "fp16", "--graphs", "kps_guider"]
    assert cli.main([*command, "--report", str(report)]) == 0
    out, err = capsys.readouterr()
    assert "for sm89, sm120" in out and "peak memory" in out and err.startswith("1/1 kps_guider")
    written = json.loads(report.read_text())
    assert written["peak_memory_mib"] > 100 and written["plan_bytes"] > 100_000 and written["machine"]["cores"] >= 1
    assert cli.main([*command, "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["engines"][0]["already_there"] and err == ""
    assert [row.problem for row in list_engines(fresh_bundle, verify=True)] == [""]
