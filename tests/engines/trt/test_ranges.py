"""Real engines for ranges, built ahead of time by TensorRT-RTX: what was said on the command line is open in them."""

import json
from pathlib import Path

import pytest

from vexpress_trt import cli
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.manifest import TensorSpec
from vexpress_trt.engines.trt.inventory import list_engines
from vexpress_trt.engines.trt.key import Sidecar
from vexpress_trt.engines.trt.profile import Profile
from vexpress_trt.engines.trt.size_flags import Range

pytestmark = pytest.mark.timeout(1200)  # the first one exports the bundle, which a busy machine makes slow


@pytest.mark.parametrize(
    ("graph", "flags", "profile"),
    [
        ("vae_decoder", "--image_width 64-96-128 --image_height 80-80", "N1-1-8_h10_w8-12-16"),
        ("kps_guider", "--image_width 80-80 --image_height 64-128", "N1-8-8_h8-16-16_w10"),
        ("reference", "--image_width 64-96-128 --image_height 80-80", "h10_w8-12-16"),
        ("audio_encoder", "--audio_seconds 1-2-10", "S16000-32000-160000"),
        (
            "denoiser_single",
            "--image_width 80-80 --image_height 64-96-128 --context_frames 2-4 --window_batch 2-2",
            "B2_F2-4-4_h8-12-16_w10",
        ),
        (
            "denoiser_guided",
            "--image_width 64-64 --image_height 64-64 --context_frames 4-4 --window_batch 1-2-3",
            "B1-2-3_F4_h8_w8",
        ),
    ],
)
def test_what_has_a_range_is_open_in_the_engine_and_all_else_is_pinned(
    fresh_bundle: Path, graph: str, flags: str, profile: str, capsys: pytest.CaptureFixture
) -> None:
    command = f"build {fresh_bundle} --target sm89 --precision fp16 --optimization_level 0 --profile dynamic --quiet"
    assert cli.main([*command.split(), "--graphs", graph, *flags.split(), "--json"]) == 0
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    bundle = Bundle.open(fresh_bundle)
    spec = bundle.graph(graph, "fp16")
    ranges = Profile.parse(profile)
    sidecar = bundle.path(engine["path"]).with_suffix(".json")
    bindings = Sidecar.from_json(sidecar.read_text(), sidecar.name).bindings

    def declared(tensor: TensorSpec) -> list[int]:
        return [-1 if (size := ranges.size(dimension)) is None else size for dimension in tensor.shape]

    assert [list(binding.shape) for binding in bindings] == [declared(t) for t in (*spec.inputs, *spec.outputs)]
    assert any(-1 in binding.shape for binding in bindings)
    assert [row.profile for row in list_engines(fresh_bundle, verify=True)] == [profile]
    built = json.loads(sidecar.read_text())["built"]["profile"]
    assert {symbol: Range(*sizes) for symbol, sizes in built.items()} == ranges.ranges
