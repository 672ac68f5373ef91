"""The held-out clips are complete without espeak-ng, are of other people, and can be measured."""

from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.models.box.clip_request import clip_request
from vexpress_trt.models.box.held_out import CLIP_FRAMES, CLIPS, DEMO, DEMO_FRAMES, HeldOutClip, held_out_clips
from vexpress_trt.models.box.record import write_flac
from vexpress_trt.models.mini.identity import FIRST_HELD_OUT
from vexpress_trt.models.mini.measure import keypoint_errors, mouth_opening
from vexpress_trt.runtime import advice
from vexpress_trt.runtime.audio_input import decode_audio, measure
from vexpress_trt.runtime.clip import prepare_clip
from vexpress_trt.runtime.tracks import load_track

ALL = [*held_out_clips(), HeldOutClip(DEMO)]


def test_there_are_two_dozen_clips_of_a_second_or_more() -> None:
    assert len(held_out_clips()) == CLIPS >= 20
    assert CLIP_FRAMES >= 24
    assert {len(clip.track) for clip in held_out_clips()} == {CLIP_FRAMES}
    assert len(HeldOutClip(DEMO).track) == DEMO_FRAMES
    assert len({clip.who for clip in ALL}) == len(ALL)
    assert all(clip.who.seed >= FIRST_HELD_OUT for clip in ALL)


@pytest.mark.parametrize("clip", ALL, ids=lambda clip: str(clip.number))
def test_the_mouth_can_be_read_from_true_frames(clip: HeldOutClip) -> None:
    opening = [mouth_opening(frame, points) for frame, points in zip(clip.truth, clip.track, strict=True)]
    assert np.corrcoef(opening, clip.driven.opening)[0, 1] >= 0.99
    assert np.std(clip.driven.opening) > 0.1


def test_the_head_can_be_found_in_true_frames() -> None:
    errors = [
        keypoint_errors(frame, points, clip.portrait, clip.portrait_keypoints)
        for clip in ALL[::4]
        for frame, points in zip(clip.truth[::10], clip.track[::10], strict=True)
    ]
    assert np.mean(errors) < 0.02


@pytest.mark.parametrize("clip", ALL, ids=lambda clip: str(clip.number))
def test_speech_needs_no_advice(clip: HeldOutClip) -> None:
    audio = decode_audio(clip.speech)
    assert (audio.source_rate, audio.channels) == (16_000, 1)
    assert advice.doubtful_audio(measure(audio.samples)) is None


def test_the_files_stay_small() -> None:
    assert sum(clip.speech.stat().st_size for clip in ALL) < 2e6


def test_a_clip_as_the_runtime_takes_it(tmp_path: Path, golden_bundle: Path) -> None:
    from vexpress_trt.engines.bundle import Bundle

    clip = HeldOutClip(0)
    request = clip_request(clip, tmp_path, bundle=golden_bundle)
    request.validate()
    track = load_track(request.kps_path)
    assert (track.size, track.fps) == ((128, 128), 25.0)
    prepared = prepare_clip(request, Bundle.open(golden_bundle).manifest.model)
    assert prepared.length == CLIP_FRAMES
    np.testing.assert_allclose(prepared.points[:CLIP_FRAMES], clip.track, atol=1e-3)
    shown = (prepared.image[0].transpose(1, 2, 0) + 1) * 127.5
    np.testing.assert_allclose(shown, clip.portrait, atol=1e-3)


def test_written_speech_is_what_was_spoken(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    write_flac(tmp_path / "a.flac", samples)
    np.testing.assert_allclose(decode_audio(tmp_path / "a.flac").samples, samples, atol=1e-4)
