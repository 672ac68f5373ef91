"""The command that a refusal names is read back by the real command line and builds what was missing, or damaged."""

import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from small_model import SMALL_MODEL

from vexpress_trt import cli
from vexpress_trt.engines.call_sizes import ClipSizes
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.engines.trt import build as build_module
from vexpress_trt.engines.trt.build import BuildSettings
from vexpress_trt.engines.trt.profile import Profile, ProfileSettings
from vexpress_trt.engines.trt.report import BuildReport
from vexpress_trt.engines.trt.size_flags import Range
from vexpress_trt.engines.trt.wanted import SizeWords, outside

MODEL = replace(SMALL_MODEL, image_width=512, image_height=384, context_frames=24)
WORDS = SizeWords(MODEL)


def graph(name: str, *shape: int | str) -> GraphSpec:
    return GraphSpec(name, "fp16", "g.onnx", (TensorSpec("x", "float32", shape),), (), ("g.onnx",))


GRAPHS = {
    "audio_encoder": graph("audio_encoder", 1, "S"),
    "audio_projection": graph("audio_projection", "N", 10, 64),
    "kps_guider": graph("kps_guider", "N", 3, "8*h", "8*w"),
    "vae_encoder": graph("vae_encoder", 1, 3, "8*h", "8*w"),
    "denoiser_guided": graph("denoiser_guided", "B", "F", 4, "h", "w"),
    "vae_decoder": graph("vae_decoder", "N", 4, "h", "w"),
}


def read_back(settings: ProfileSettings) -> ProfileSettings:
    """What `vexpress build` is asked for by the words that say these settings."""
    asked: list[BuildSettings] = []

    def build(settings: BuildSettings, progress: object) -> BuildReport:
        asked.append(settings)
        return BuildReport("x", "tensorrt", "1", "fp16", (), settings.profile.kind, 0, ())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "build_engines", build)
        assert cli.main(shlex.split(shlex.join(["build", "x.bundle", "--quiet", *WORDS.flags(settings)]))) == 0
    return asked[0].profile


def ranges(low: int, high: int, step: int = 1) -> st.SearchStrategy[Range]:
    sizes = st.lists(st.integers(low, high), min_size=3, max_size=3).map(sorted)
    return sizes.map(lambda rising: Range(*(size * step for size in rising)))


SIDES = st.integers(8, 256).map(lambda size: 8 * size)
SECONDS = st.one_of(
    st.none(),
    st.integers(2, 60).map(float),
    st.lists(st.integers(800, 960_000), min_size=2, max_size=3, unique=True)
    .map(sorted)
    .map(lambda own: Range(own[0] / 16_000, own[len(own) // 2] / 16_000, own[-1] / 16_000)),
)
STATIC = st.builds(
    ProfileSettings,
    st.just("static"),
    st.none() | SIDES,
    st.none() | SIDES,
    st.none() | st.integers(1, 32),
    st.integers(1, 64),
    SECONDS,
)
DYNAMIC = st.builds(
    ProfileSettings,
    st.just("dynamic"),
    st.none() | SIDES | ranges(8, 256, 8),
    st.none() | SIDES | ranges(8, 256, 8),
    st.none() | st.integers(1, 32) | ranges(1, 32),
    st.integers(1, 64) | ranges(1, 64),
    SECONDS,
)
CLIPS = st.builds(
    ClipSizes,
    st.just(frozenset({"denoiser_guided"})),
    st.integers(8, 256),
    st.integers(8, 256),
    st.integers(1, 32),
    st.integers(1, 64),
    st.none() | st.integers(800, 960_000),
)


@given(STATIC | DYNAMIC)
def test_settings_are_said_as_the_flags_that_make_them(settings: ProfileSettings) -> None:
    assert settings.problem(MODEL) == ""
    assert read_back(settings) == settings


@given(STATIC | DYNAMIC, st.sampled_from(sorted(GRAPHS)))
def test_the_name_of_a_profile_tells_the_command_that_makes_it_again(settings: ProfileSettings, name: str) -> None:
    made = settings.of(GRAPHS[name], MODEL)
    again = read_back(WORDS.settings_of(name, Profile.parse(made.name)))
    assert again.problem(MODEL) == ""
    assert again.of(GRAPHS[name], MODEL) == made


@limits(max_examples=30)
@given(CLIPS)
def test_the_command_for_a_clip_builds_all_its_engines_with_static_sizes(clip: ClipSizes) -> None:
    for name, spec in GRAPHS.items():
        settings = read_back(WORDS.settings_for(spec, clip.of(name)))
        assert settings.kind == "static" and settings.problem(MODEL) == ""
        for other in GRAPHS.values():
            assert not outside(settings.of(other, MODEL), clip.of(other.name))


@pytest.mark.parametrize(
    ("name", "sizes", "flags"),
    [
        ("vae_decoder", {"N": 1, "h": 48, "w": 64}, ""),
        ("vae_decoder", {"N": 1, "h": 48, "w": 32}, "--image_width 256"),
        ("vae_decoder", {"N": 3, "h": 48, "w": 32}, "--profile dynamic --image_width 256"),
        ("kps_guider", {"N": 2, "h": 9, "w": 11}, "--profile dynamic --image_width 88 --image_height 72"),
        ("kps_guider", {"N": 8, "h": 5, "w": 7}, "--profile dynamic --image_width 64 --image_height 64"),
        ("audio_projection", {"N": 2}, "--profile dynamic"),
        ("audio_encoder", {"S": 16_000}, ""),
    ],
)
def test_sizes_that_no_clip_has_need_a_range(name: str, sizes: dict[str, int], flags: str) -> None:
    settings = read_back(WORDS.settings_for(GRAPHS[name], sizes))
    assert WORDS.flags(settings) == flags.split()
    assert settings.of(GRAPHS[name], MODEL).takes(sizes)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vae_decoder", {"N": 9, "h": 48, "w": 64}),
        ("vae_decoder", {"N": 1, "h": 3, "w": 64}),
        ("vae_decoder", {"N": 1, "h": 48, "w": 257}),
        ("denoiser_guided", {"B": 1, "F": 33, "h": 48, "w": 64}),
        ("denoiser_guided", {"B": 65, "F": 24, "h": 48, "w": 64}),
        ("audio_encoder", {"S": 799}),
        ("audio_encoder", {"S": 960_001}),
    ],
)
def test_sizes_that_nothing_can_be_built_for_have_no_command(name: str, sizes: dict[str, int]) -> None:
    assert WORDS.settings_for(GRAPHS[name], sizes) is None
