"""Real engines for ranges, built ahead of time by TensorRT-RTX: what was said on the command line is open in them."""

import json
from pathlib import Path

import pytest

from vexpress_trt import cli
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.trt.inventory import list_engines
from vexpress_trt.engines.trt.key import Sidecar
from vexpress_trt.engines.trt.profile import Profile
from vexpress_trt.engines.trt.size_flags import Range

pytestmark = pytest.mark.timeout(1200)  # the first one exports the bundle, which a busy machine makes slow


ONE_LENGTH = "--context_frames 4-4 --window_batch"


@pytest.mark.parametrize(
    ("graph", "flags", "profile", "shapes"),
    [
        (
            "vae_decoder",
            "--image_width 64-96-128 --image_height 80-80",
            "N1-1-8_h10_w8-12-16",
            {"latents": (-1, 4, 10, -1), "image": (-1, 3, 80, -1)},
        ),
        (
            "kps_guider",
            "--image_width 80-80 --image_height 64-128",
            "N1-8-8_h8-16-16_w10",
            {"rgb": (-1, 3, -1, 80), "feature": (-1, 32, -1, 10)},
        ),
        (
            "reference",
            "--image_width 64-96-128 --image_height 80-80",
            "h10_w8-12-16",
            {"latent": (1, 4, 10, -1), "key_00": (1, 8, -1, 4), "value_00": (1, 8, -1, 4)},
        ),
        (
            "audio_encoder",
            "--audio_seconds 1-2-10",
            "S16000-32000-160000",
            {"waveform": (1, -1), "hidden": (1, -1, 48)},
        ),
        (
            "denoiser_single",
            f"--image_width 80-80 --image_height 64-96-128 {ONE_LENGTH} 2-2",
            "B2_F4_h8-12-16_w10",
            {"latents": (2, 4, 4, -1, 10), "key_00": (1, 8, -1, 4), "prediction": (2, 1, 4, 4, -1, 10)},
        ),
        (
            "denoiser_single",
            "--image_width 80-80 --image_height 64-64 --context_frames 2-4 --window_batch 2-2",
            "B2_F2-4-4_h8_w10",
            {"latents": (2, -1, 4, 8, 10), "key_00": (1, 8, 80, 4), "prediction": (2, 1, -1, 4, 8, 10)},
        ),
        (
            "denoiser_guided",
            f"--image_width 64-64 --image_height 64-64 {ONE_LENGTH} 1-2-3",
            "B1-2-3_F4_h8_w8",
            {"latents": (-1, 4, 4, 8, 8), "timestep": (-1,), "prediction": (-1, 2, 4, 4, 8, 8)},
        ),
    ],
)
def test_what_has_a_range_is_open_in_the_engine_and_all_else_is_pinned(
    fresh_bundle: Path, graph: str, flags: str, profile: str, shapes: dict, capsys: pytest.CaptureFixture
) -> None:
    command = f"build {fresh_bundle} --target sm89 --precision fp16 --optimization_level 0 --profile dynamic --quiet"
    assert cli.main([*command.split(), "--graphs", graph, *flags.split(), "--json"]) == 0
    (engine,) = json.loads(capsys.readouterr().out)["engines"]
    path = Bundle.open(fresh_bundle).path(engine["path"]).with_suffix(".json")
    sidecar = Sidecar.from_json(path.read_text(), path.name)
    bindings = {binding.name: binding.shape for binding in sidecar.bindings}
    assert {name: bindings[name] for name in shapes} == shapes
    assert [row.profile for row in list_engines(fresh_bundle, verify=True)] == [profile]
    built = {symbol: Range(*sizes) for symbol, sizes in sidecar.built["profile"].items()}
    assert built == Profile.parse(profile).ranges
