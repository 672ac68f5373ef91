"""The budget of a clip is divided among the engines that are loaded at once, and never given away twice."""

from types import SimpleNamespace

import pytest

pytest.importorskip("av", reason="needs media input")

from vexpress_trt.runtime.cuda.budget import CONTEXT, EngineNeed, GpuNeed
from vexpress_trt.runtime.cuda.shares import Shares

GUIDER = EngineNeed("kps_guider", "guider", 2, 100)
GUIDED = EngineNeed("denoiser_guided", "denoiser", 2000, 3000, kept=5)
SINGLE = EngineNeed("denoiser_single", "denoiser", 2000, 1500, kept=5)
DECODER = EngineNeed("vae_decoder", "decoder", 100, 400)
LOOP = (GUIDER, GUIDED, SINGLE, DECODER)
WHOLE = 2 + 100 + 2000 + 2000 + 3000 + 100 + 400  # the denoisers share working memory


def shares(engines: tuple[EngineNeed, ...] = LOOP, room: int = WHOLE) -> Shares:
    need = GpuNeed(engines, buffers=50)
    return Shares(CONTEXT + 50 + sum(engine.kept for engine in engines) + room, need)


def loaded(weights: int, working: int) -> SimpleNamespace:
    return SimpleNamespace(gpu_bytes=(weights, working))


def test_each_may_have_what_the_others_leave_that_are_still_to_come() -> None:
    ours = shares()
    assert ours.of("kps_guider", told=True) == 102
    assert ours.of("denoiser_guided", told=True) == 2000 + 3000
    assert ours.of("vae_decoder", told=True) == 500


def test_what_one_does_not_take_the_next_may() -> None:
    ours = shares()
    ours.loaded("kps_guider", loaded(2, 40))
    assert ours.of("denoiser_guided", told=True) == 5000 + 60
    ours.loaded("denoiser_guided", loaded(1900, 2500))
    # Working memory of the other denoiser is the same, so what it may have of its own is smaller by the difference.
    assert ours.of("denoiser_single", told=True) == 2000 + 2500 + 60 + 100 + 500 - (2500 - 1500)
    ours.loaded("denoiser_single", loaded(2000, 1500))
    assert ours.of("vae_decoder", told=True) == 500 + 60 + 100 + 500


def test_what_was_taken_beyond_the_estimate_is_missing_elsewhere() -> None:
    ours = shares()
    ours.loaded("denoiser_guided", loaded(2300, 3000))
    assert ours.of("vae_decoder", told=True) == 200
    ours.freed("denoiser_guided")
    assert ours.of("vae_decoder", told=True) == 500


def test_an_engine_of_another_stage_has_all_that_is_not_loaded() -> None:
    ours = shares()
    assert ours.of("reference", told=True) == WHOLE
    ours.loaded("reference", loaded(1700, 300))
    assert ours.of("vae_encoder", told=True) == WHOLE - 2000
    ours.freed("reference")
    assert ours.of("vae_encoder", told=True) == WHOLE


def test_weights_that_may_stream_share_what_is_short() -> None:
    streaming = (
        GUIDER,
        *(EngineNeed(e.graph, e.turn, e.weights, e.working, 5, True) for e in (GUIDED, SINGLE)),
        DECODER,
    )
    ours = shares(streaming, WHOLE - 3000)
    assert ours.of("kps_guider", told=True) == 102
    assert ours.of("denoiser_guided", told=True) == 500 + 3000
    ours.loaded("denoiser_guided", loaded(500, 3000))
    assert ours.of("denoiser_single", told=True) == 500 + 3000 - (3000 - 1500)
    assert ours.of("vae_decoder", told=True) == 500


def test_the_largest_weights_stream_first() -> None:
    streaming = tuple(
        EngineNeed(e.graph, e.turn, e.weights, e.working, e.kept, True) for e in (GUIDER, GUIDED, DECODER)
    )
    ours = shares(streaming, 2 + 100 + 300 + 3000 + 100 + 400)
    assert [ours.of(engine.graph, told=True) for engine in streaming] == [102, 3300, 500]
    ours = shares(streaming, 2 + 100 + 50 + 3000 + 50 + 400)
    assert [ours.of(engine.graph, told=True) for engine in streaming] == [102, 3050, 450]


def test_engines_that_do_not_tell_have_fixed_parts_that_fill_the_room() -> None:
    sessions = tuple(EngineNeed(e.graph, e.graph, e.weights, e.working, e.kept) for e in LOOP)
    ours = shares(sessions, 2 * sum(engine.weights + engine.working for engine in sessions))
    parts = {}
    for engine in sessions:
        parts[engine.graph] = ours.of(engine.graph, told=False)
        ours.loaded(engine.graph, SimpleNamespace(gpu_bytes=None))
    assert parts == {engine.graph: 2 * (engine.weights + engine.working) for engine in sessions}
