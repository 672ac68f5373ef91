"""Which engines suit a clip, and what is said where none does: the field that differs and the whole command."""

import logging
from dataclasses import replace

import fake_tensorrt
import pytest
from fake_tensorrt import HostDriver, store_plan

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.call_sizes import ClipSizes
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.engines.selection import choose_engines
from vexpress_trt.engines.trt.fitting import Here, fitting_plans, rebuild_command
from vexpress_trt.engines.trt.flavour import RTX, TENSORRT, TensorRt
from vexpress_trt.engines.trt.profile import ProfileSettings
from vexpress_trt.engines.trt.size_flags import Range
from vexpress_trt.engines.trt.store import EngineStore

FULL = TensorRt(TENSORRT, fake_tensorrt, "11.4")
CLIP = ClipSizes(frozenset({"denoiser_guided"}), height=8, width=8, window=12, window_batch=1)  # the bundle's defaults
WIDER = replace(CLIP, width=15)


@pytest.fixture
def command(bundle: Bundle, gpu: HostDriver) -> str:
    """What builds engines for the bundle's own sizes."""
    return f"vexpress build {bundle.root} --backend tensorrt --precision fp32"


def test_auto_passes_over_engines_of_another_size_and_says_what_would_be_taken(
    bundle: Bundle, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = store_plan(bundle, FULL, "vae_decoder")
    assert choose_engines(bundle, dtype="fp32", clip=CLIP).backend == TENSORRT
    assert not choose_engines(bundle, dtype="fp32", clip=WIDER).planned
    (line,) = caplog.messages
    assert line == (
        f"tensorrt's engines are passed over: {bundle.root} has no tensorrt engine of vae_decoder in fp32 that runs "
        f"here ({path.relative_to(bundle.root)}: it is for --image_width 64, not 120): build with "
        f"`{command} --image_width 120`"
    )


def test_nothing_is_said_of_engines_that_are_passed_over_where_others_are_taken(bundle, gpu, caplog) -> None:
    store_plan(bundle, FULL, "vae_decoder")
    store_plan(bundle, TensorRt(RTX, fake_tensorrt, "11.4"), "vae_decoder", settings=ProfileSettings(image_width=120))
    caplog.set_level(logging.INFO, "vexpress")
    assert choose_engines(bundle, clip=WIDER).backend == RTX
    assert not caplog.messages


def test_a_backend_that_is_asked_for_is_refused_with_the_command_of_all_sizes(bundle: Bundle, command: str) -> None:
    store_plan(bundle, FULL, "vae_decoder")
    other = ClipSizes(CLIP.denoisers, height=9, width=15, window=24, window_batch=2)
    with pytest.raises(UserError) as refusal:
        choose_engines(bundle, backend=TENSORRT, clip=other)
    assert "it is for --image_height 64, not 72 and --image_width 64, not 120" in str(refusal.value)
    flags = "--image_width 120 --image_height 72 --context_frames 24 --window_batch 2"
    assert str(refusal.value).endswith(f"build with `{command} {flags}`")


def test_a_range_is_told_by_its_ends(bundle: Bundle, command: str) -> None:
    store_plan(bundle, FULL, "vae_decoder", settings=ProfileSettings("dynamic"))
    with pytest.raises(UserError, match="it is for --image_width 32 to 64, not 120"):
        choose_engines(bundle, backend=TENSORRT, clip=WIDER)


def test_a_clip_within_an_engine_s_range_is_taken_and_one_outside_of_it_is_not(bundle: Bundle, gpu, caplog) -> None:
    settings = ProfileSettings("dynamic", image_width=Range(64, 72, 96), image_height=Range(64, 64, 64))
    path = store_plan(bundle, FULL, "vae_decoder", settings=settings)
    assert path.name == "vae_decoder.N1-1-8_h8_w8-9-12.plan"
    for width in range(8, 13):
        assert choose_engines(bundle, dtype="fp32", clip=replace(CLIP, width=width)).backend == TENSORRT
    assert not caplog.messages
    for clip in (replace(CLIP, width=7), replace(CLIP, width=13), replace(CLIP, height=9)):
        assert not choose_engines(bundle, dtype="fp32", clip=clip).planned
    assert "it is for --image_width 64 to 96, not 104" in caplog.messages[1]
    assert "it is for --image_height 64, not 72" in caplog.messages[2]


def test_of_several_engines_that_take_the_sizes_those_for_the_fewest_come_first(bundle: Bundle, gpu) -> None:
    wide, narrow, static = (
        store_plan(bundle, FULL, "vae_decoder", settings=settings)
        for settings in (
            ProfileSettings("dynamic", image_width=Range(64, 64, 512)),
            ProfileSettings("dynamic", image_width=Range(64, 64, 72), image_height=Range(64, 64, 72)),
            ProfileSettings(),
        )
    )
    found = fitting_plans(bundle, Here(FULL, "sm89"), bundle.graph("vae_decoder", "fp32"), CLIP.of("vae_decoder"))
    assert [stored.plan for stored, _ in found] == [static, narrow, wide]


def test_only_the_denoisers_that_the_clip_runs_count(bundle: Bundle, gpu: HostDriver) -> None:
    store_plan(bundle, FULL, "vae_decoder")
    absent = replace(bundle.graph("vae_decoder", "fp32"), name="denoiser_single")
    with_single = replace(bundle, manifest=replace(bundle.manifest, graphs=(*bundle.manifest.graphs, absent)))
    assert choose_engines(with_single, backend=TENSORRT, clip=CLIP).planned
    both = replace(CLIP, denoisers=frozenset({"denoiser_guided", "denoiser_single"}))
    for wanted in (both, None):
        with pytest.raises(UserError, match="no tensorrt engine of denoiser_single in fp32"):
            choose_engines(with_single, backend=TENSORRT, clip=wanted)


def test_what_differs_is_told_of_the_engine_that_comes_nearest(bundle: Bundle, gpu: HostDriver) -> None:
    store_plan(bundle, FULL, "vae_decoder", target="sm75", version="11.1")
    with pytest.raises(UserError, match="it is of tensorrt 11.1, installed is 11.4"):
        choose_engines(bundle, backend=TENSORRT, clip=WIDER)
    store_plan(bundle, FULL, "vae_decoder")
    with pytest.raises(UserError, match="it is for --image_width 64, not 120"):
        choose_engines(bundle, backend=TENSORRT, clip=WIDER)


@pytest.mark.parametrize("old", [{"version": "11.1"}, {"target": "sm75"}])
@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        (ProfileSettings("dynamic", Range(64, 72, 120)), "--profile dynamic --image_width 64-72-120"),
        (ProfileSettings("dynamic", 120), "--profile dynamic --image_width 120"),
        (ProfileSettings(image_width=120), "--image_width 120"),
    ],
)
def test_an_engine_of_another_version_or_gpu_is_built_again_for_the_sizes_it_had(
    bundle: Bundle, command: str, settings: ProfileSettings, flags: str, old: dict[str, str]
) -> None:
    too_wide = [ProfileSettings(kind, 256) for kind in ("dynamic", "static")]  # one sorts before the others, one behind
    for each in (settings, *too_wide):
        store_plan(bundle, FULL, "vae_decoder", settings=each, **old)
    longer = replace(WIDER, window=32)  # which the decoder does not see; the denoisers are built by the same command
    for clip, further in ((WIDER, ""), (longer, " --context_frames 32")):
        with pytest.raises(UserError) as refusal:
            choose_engines(bundle, backend=TENSORRT, clip=clip)
        assert "it is of tensorrt 11.1" in str(refusal.value) or "it is for sm75" in str(refusal.value)
        assert str(refusal.value).endswith(f"build with `{command} {flags}{further}`")
    with pytest.raises(UserError) as refusal:
        choose_engines(bundle, backend=TENSORRT, clip=replace(CLIP, width=40))
    assert str(refusal.value).endswith(f"build with `{command} --image_width 320`")


def test_an_engine_in_another_precision_is_told(make_bundle, tmp_path, gpu: HostDriver) -> None:
    bundle = make_bundle(tmp_path / "two.bundle", ("fp32", "fp16"))
    store_plan(bundle, FULL, "vae_decoder")
    with pytest.raises(UserError, match="it is in fp32, not fp16.: build with `.* --precision fp16`"):
        choose_engines(bundle, backend=TENSORRT, dtype="fp16", clip=CLIP)
    with pytest.raises(
        UserError, match="in fp32 that runs here .*--image_width 64, not 120.: .* --precision fp32 --im"
    ):
        choose_engines(bundle, backend=TENSORRT, clip=WIDER)


def test_a_graph_that_was_exported_again_is_told(bundle: Bundle, gpu: HostDriver) -> None:
    store_plan(bundle, FULL, "vae_decoder")
    file = next(iter(bundle.graph("vae_decoder", "fp32").files))
    changed = bundle.manifest.files | {file: replace(bundle.manifest.files[file], sha256="0" * 64)}
    again = replace(bundle, manifest=replace(bundle.manifest, files=changed))
    with pytest.raises(UserError, match="vae_decoder was exported again since"):
        choose_engines(again, backend=TENSORRT, clip=CLIP)


def test_the_command_keeps_what_the_engine_was_built_with_and_names_the_gpu(bundle: Bundle, command: str) -> None:
    store_plan(bundle, FULL, "vae_decoder", options=("optimization_level=3", "weight_streaming"))
    with pytest.raises(UserError) as refusal:
        fitting_plans(bundle, Here(FULL, "sm89", gpu=1), bundle.graph("vae_decoder", "fp32"), WIDER.of("vae_decoder"))
    options = "--optimization_level 3 --weight_streaming --gpu_id 1"
    assert str(refusal.value).endswith(f"`{command} --image_width 120 {options}`")


def test_an_engine_of_another_cuda_is_told(bundle: Bundle, gpu: HostDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(TensorRt, "cuda_major", 12)
        store_plan(bundle, FULL, "vae_decoder")
    with pytest.raises(UserError, match="it is for CUDA 12, installed is CUDA 13.: build with"):
        choose_engines(bundle, backend=TENSORRT, clip=CLIP)


def test_a_damaged_engine_for_several_gpus_is_built_again_for_all_of_them(bundle: Bundle, gpu: HostDriver) -> None:
    rtx = TensorRt(RTX, fake_tensorrt, "11.4")
    store_plan(bundle, rtx, "vae_decoder", options=("weight_streaming",))
    (own,) = EngineStore(bundle).all()
    command = f"build with `vexpress build {bundle.root} --backend tensorrt-rtx --precision fp32"
    here = Here(rtx, "sm89", gpu=1)
    assert rebuild_command(bundle, here, own) == f"{command} --weight_streaming --gpu_id 1 --force`"
    both = replace(own, sidecar=replace(own.sidecar, key=replace(own.sidecar.key, targets=("sm86", "sm89"))))
    assert rebuild_command(bundle, here, both) == f"{command} --target sm86,sm89 --weight_streaming --force`"


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        (ProfileSettings(image_width=120), "--image_width 120"),
        (ProfileSettings("dynamic"), "--profile dynamic"),
        (ProfileSettings("dynamic", image_width=120), "--profile dynamic --image_width 120"),
        (ProfileSettings("dynamic", Range(64, 72, 120)), "--profile dynamic --image_width 64-72-120"),
        (
            ProfileSettings("dynamic", Range(64, 64, 64), Range(64, 72, 72)),
            "--profile dynamic --image_width 64-64 --image_height 64-72",
        ),
    ],
)
def test_a_damaged_engine_is_built_again_for_the_range_it_had(
    bundle: Bundle, command: str, settings: ProfileSettings, flags: str
) -> None:
    store_plan(bundle, FULL, "vae_decoder", settings=settings, options=("weight_streaming",))
    (own,) = EngineStore(bundle).all()
    said = f"build with `{command} {flags} --weight_streaming --force`"
    assert rebuild_command(bundle, Here(FULL, "sm89"), own) == said


@pytest.mark.parametrize(
    "compatible",
    [
        {"version": "11.3", "options": ("version_compatible",)},
        {"target": "sm80", "options": ("hardware_compatible",)},
    ],
)
def test_engines_of_this_version_and_gpu_come_before_compatible_ones(
    bundle: Bundle, gpu, compatible: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEXPRESS_TRUST_ENGINES", "1")
    other = store_plan(bundle, FULL, "vae_decoder", **compatible)
    own = store_plan(bundle, FULL, "vae_decoder", options=compatible["options"])
    found = fitting_plans(bundle, Here(FULL, "sm89"), bundle.graph("vae_decoder", "fp32"))
    assert [stored.plan for stored, _ in found] == [own, other]


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (1200000, "s of speech at once, not 75.: no build takes more than 60 s; leave out --compat upstream"),
        (400, "not 0.025.: no build takes less; give longer speech, or use another --backend"),
    ],
)
def test_speech_that_no_engine_takes_needs_another_backend(bundle: Bundle, gpu, samples: int, said: str) -> None:
    decoder = bundle.graph("vae_decoder", "fp32")
    waveform = TensorSpec(name="waveform", shape=(1, "S"), dtype="float32")
    encoder: GraphSpec = replace(decoder, name="audio_encoder", inputs=(waveform,))
    hearing = replace(bundle, manifest=replace(bundle.manifest, graphs=(encoder,)))
    store_plan(hearing, FULL, "audio_encoder")
    assert choose_engines(hearing, backend=TENSORRT, clip=replace(CLIP, samples=16000)).planned
    with pytest.raises(UserError, match=said):
        choose_engines(hearing, backend=TENSORRT, clip=replace(CLIP, samples=samples))


def test_longer_speech_than_an_engine_was_built_for_names_the_command(bundle: Bundle, command: str) -> None:
    waveform = TensorSpec(name="waveform", shape=(1, "S"), dtype="float32")
    encoder = replace(bundle.graph("vae_decoder", "fp32"), name="audio_encoder", inputs=(waveform,))
    hearing = replace(bundle, manifest=replace(bundle.manifest, graphs=(encoder,)))
    store_plan(hearing, FULL, "audio_encoder", settings=ProfileSettings(audio_seconds=Range(1.0, 2.0, 10.0)))
    for seconds in (1, 10):
        assert choose_engines(hearing, backend=TENSORRT, clip=replace(CLIP, samples=16_000 * seconds)).planned
    with pytest.raises(UserError) as refusal:
        choose_engines(hearing, backend=TENSORRT, clip=replace(CLIP, samples=16_000 * 20))
    assert str(refusal.value).endswith(f"it is for 1 to 10 s of speech at once, not 20): build with `{command}`")
    (own,) = EngineStore(hearing).all()
    assert rebuild_command(hearing, Here(FULL, "sm89"), own) == f"build with `{command} --audio_seconds 1-2-10 --force`"
