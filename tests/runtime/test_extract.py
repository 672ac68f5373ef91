"""`vexpress extract` on videos made on the spot from the public-domain portrait, and on real clips where they are."""

import json
import logging
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.extract import ExtractResult, extract
from vexpress_trt.runtime.faces.mtcnn import MtcnnDetector
from vexpress_trt.runtime.tracks import load_track

ROOT = Path(__file__).resolve().parents[2]
FPS = 24
SIDE = 320
# Set by hand: pupils and tip of the nose in the 512x512 portrait.
MARKED = np.array([[203.5, 100.9], [247.8, 103.4], [225.0, 126.3]], np.float32)
HEAD = slice(0, 256), slice(96, 352)  # the part of the portrait that the drawn scenes show


@pytest.fixture(scope="module")
def detector() -> MtcnnDetector:
    return MtcnnDetector()


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    portrait = cv2.imread(str(ROOT / "models" / "demo" / "portrait.jpg"))
    assert portrait.shape == (512, 512, 3)
    return cv2.cvtColor(portrait, cv2.COLOR_BGR2RGB)[HEAD]


def motion(index: int) -> np.ndarray:
    """Where frame `index` shows the head: a 2x3 matrix from its pixels to those of a 320x320 frame."""
    scale = 1 + 0.1 * np.sin(index / 6)
    matrix = cv2.getRotationMatrix2D((128, 128), 8 * np.sin(index / 5), scale)
    matrix[:, 2] += [32 + 25 * np.sin(index / 4), 32 + 15 * np.cos(index / 7)]
    return matrix


def scene(head: np.ndarray, index: int) -> np.ndarray:
    return cv2.warpAffine(head, motion(index), (SIDE, SIDE), flags=cv2.INTER_AREA, borderValue=(90, 90, 90))


def truth(indices: Sequence[int]) -> np.ndarray:
    """Marked points of frames in pixels of a 512x512 frame, [T, 3, 2]."""
    local = MARKED - [96, 0]
    return np.stack([(local @ motion(i)[:, :2].T + motion(i)[:, 2]) * 512 / SIDE for i in indices])


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    sound: str | None = None,
    sound_delay: float = 0.0,
    rate: int = 16_000,
    channels: int = 1,
) -> Path:
    """A video of RGB frames at 24 frames/s, with a click at 0.5 s of its sound when `sound` names a codec."""
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w") as output:
        video = output.add_stream("libx264", rate=FPS, options={"crf": "12", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        if sound:
            layout = "mono" if channels == 1 else "stereo"
            audio = output.add_stream(sound, rate=rate, layout=layout)
            samples = np.zeros((channels, rate), np.float32)
            samples[:, rate // 2 : rate // 2 + 200] = 0.8
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
            for packet in [*audio.encode(frame), *audio.encode(None)]:
                packet.pts += round(max(0, sound_delay) / packet.time_base)
                packet.dts = packet.pts
                output.mux(packet)
        for index, image in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            picture.pts, picture.time_base = index + round(max(0, -sound_delay) * FPS), Fraction(1, FPS)
            output.mux(video.encode(picture))
        output.mux(video.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory, head: np.ndarray) -> Path:
    """One second of a moving head with AAC sound."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_video(path, [scene(head, index) for index in range(FPS)], sound="aac")


def clicks_at(path: Path) -> tuple[float, str, int]:
    """When the click comes in seconds, the codec and the number of channels."""
    with av.open(str(path)) as media:
        stream = media.streams.audio[0]
        resampler = av.AudioResampler("flt", "mono", 16_000)
        blocks = [b for f in [*media.decode(stream), None] for b in resampler.resample(f)]
        samples = np.concatenate([block.to_ndarray()[0] for block in blocks])
        return float(np.argmax(np.abs(samples) > 0.3)) / 16_000, stream.codec_context.name, stream.channels


def errors(result: ExtractResult, indices: Sequence[int]) -> np.ndarray:
    return np.linalg.norm(result.points - truth(indices), axis=-1)


def test_the_track_follows_a_known_motion(clip: Path, tmp_path: Path, detector: MtcnnDetector) -> None:
    result = extract(clip, tmp_path / "track.npy", detector=detector)
    assert result.points.shape == (FPS, 3, 2) and result.points.dtype == np.float32
    assert errors(result, range(FPS)).mean() < 2.5
    assert errors(result, range(FPS)).max() < 6
    assert result.gaps == () and result.jumps == () and result.faces == 1
    assert result.detector == "mtcnn"


@pytest.mark.parametrize("name", ["track.pth", "track.npy", "new/folder/track.pth"])
def test_the_written_track_is_what_was_found(clip: Path, tmp_path: Path, detector: MtcnnDetector, name: str) -> None:
    result = extract(clip, tmp_path / name, detector=detector)
    track = load_track(tmp_path / name)
    np.testing.assert_array_equal(track.points, result.points)
    if name.endswith(".npy"):
        assert track.size == (512, 512)
        assert track.fps == result.fps == FPS


def test_a_wide_video_is_squeezed_to_a_square_track(tmp_path: Path, head: np.ndarray, detector: MtcnnDetector) -> None:
    wide = [np.pad(scene(head, i), ((0, 0), (100, 220), (0, 0)), constant_values=90) for i in range(6)]
    result = extract(write_video(tmp_path / "wide.mp4", wide), tmp_path / "track.npy", detector=detector)
    expected = (truth(range(6)) * SIDE / 512 + [100, 0]) * [512 / 640, 512 / SIDE]
    assert np.linalg.norm(result.points - expected, axis=-1).max() < 6


def test_a_video_that_is_stored_lying_is_turned_upright(
    tmp_path: Path, head: np.ndarray, detector: MtcnnDetector
) -> None:
    lying = [np.rot90(scene(head, index)) for index in range(4)]
    path = write_video(tmp_path / "lying.mp4", lying)
    path.write_bytes(_with_quarter_turn(path.read_bytes()))
    result = extract(path, tmp_path / "track.npy", detector=detector)
    assert errors(result, range(4)).max() < 6


def _with_quarter_turn(data: bytes) -> bytes:
    """An MP4 whose track header asks to be shown turned by 90 degrees clockwise (ISO 14496-12, 8.3.2)."""
    one = 1 << 16
    matrix = b"".join(v.to_bytes(4, "big", signed=True) for v in (0, one, 0, -one, 0, 0, 0, 0, 1 << 30))
    start = data.index(b"tkhd") + 4 + 40
    return data[:start] + matrix + data[start + 36 :]


def test_progress_counts_the_frames(clip: Path, tmp_path: Path, detector: MtcnnDetector) -> None:
    seen: list[tuple[int, int | None]] = []
    extract(clip, tmp_path / "t.npy", detector=detector, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, FPS) for n in range(1, FPS + 1)]


def test_short_gaps_are_filled_and_reported(
    tmp_path: Path, head: np.ndarray, detector: MtcnnDetector, caplog: pytest.LogCaptureFixture
) -> None:
    blank = {0, 7, 8, 9, 23}
    frames = [np.full((SIDE, SIDE, 3), 90, np.uint8) if i in blank else scene(head, i) for i in range(FPS)]
    with caplog.at_level(logging.WARNING, "vexpress"):
        result = extract(write_video(tmp_path / "gaps.mp4", frames), tmp_path / "t.npy", detector=detector)
    assert result.as_dict()["gaps"] == [[0, 0], [7, 9], [23, 23]]
    np.testing.assert_array_equal(result.points[0], result.points[1])
    np.testing.assert_array_equal(result.points[23], result.points[22])
    np.testing.assert_allclose(result.points[8], (result.points[6] + result.points[10]) / 2, atol=1e-3)
    (record,) = caplog.records
    assert "no face in 5 of 24 frames (0, 7-9, 23)" in record.message


def test_a_long_gap_is_refused_with_its_frames_and_nothing_is_written(
    tmp_path: Path, head: np.ndarray, detector: MtcnnDetector
) -> None:
    blank = np.full((SIDE, SIDE, 3), 90, np.uint8)
    frames = [scene(head, 0)] * 3 + [blank] * 13 + [scene(head, 0)] * 3 + [blank] * 12
    video = write_video(tmp_path / "gaps.mp4", frames, sound="aac")
    with pytest.raises(UserError, match=r"no face in frames 3-15; at most 12 in a row"):
        extract(video, tmp_path / "t.npy", tmp_path / "a.wav", detector=detector)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gaps.mp4"]


def test_of_two_faces_the_nearest_to_the_last_is_followed_with_a_warning(
    tmp_path: Path, head: np.ndarray, detector: MtcnnDetector, caplog: pytest.LogCaptureFixture
) -> None:
    def both(index: int) -> np.ndarray:
        size = 160 + 8 * index  # the other face grows larger than the one that is followed
        other = np.full((SIDE, SIDE, 3), 90, np.uint8)
        other[:size, :size] = cv2.resize(head, (size, size), interpolation=cv2.INTER_AREA)
        return np.concatenate([scene(head, index), other], axis=1)

    with caplog.at_level(logging.WARNING, "vexpress"):
        result = extract(
            write_video(tmp_path / "two.mp4", [both(i) for i in range(16)]), tmp_path / "t.npy", detector=detector
        )
    assert np.linalg.norm(result.points - truth(range(16)) * [0.5, 1], axis=-1).max() < 6
    assert result.faces == 2
    (record,) = caplog.records
    assert "shows up to 2 faces" in record.message


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".wav", "pcm_s16le"), (".flac", "flac"), (".mp3", "mp3float"), (".m4a", "aac")]
)
@pytest.mark.parametrize("source", ["aac", "libmp3lame"])
def test_sound_is_written_in_the_format_of_the_suffix(
    tmp_path: Path, head: np.ndarray, detector: MtcnnDetector, suffix: str, codec: str, source: str
) -> None:
    video = write_video(tmp_path / "v.mkv", [scene(head, 0)] * 2, sound=source, rate=32_000, channels=2)
    result = extract(video, tmp_path / "t.npy", tmp_path / f"a{suffix}", detector=detector)
    assert result.audio_path == tmp_path / f"a{suffix}"
    when, written, channels = clicks_at(tmp_path / f"a{suffix}")
    assert (written, channels) == (codec, 2)
    assert abs(when - 0.5) < 0.04


def test_sound_that_fits_is_copied_bit_for_bit(clip: Path, tmp_path: Path, detector: MtcnnDetector) -> None:
    extract(clip, tmp_path / "t.npy", tmp_path / "a.m4a", detector=detector)
    packets = []
    for path in (clip, tmp_path / "a.m4a"):
        with av.open(str(path)) as media:
            packets.append([bytes(packet) for packet in media.demux(media.streams.audio[0]) if packet.size])
    assert packets[0] == packets[1]


@pytest.mark.parametrize("form", ["mkv", "mp4"])
@pytest.mark.parametrize("delay", [0.25, -0.25])
def test_sound_that_starts_apart_from_the_picture_is_brought_in_step(
    tmp_path: Path, head: np.ndarray, detector: MtcnnDetector, delay: float, form: str
) -> None:
    video = write_video(tmp_path / f"v.{form}", [scene(head, 0)] * 2, sound="flac", sound_delay=delay)
    extract(video, tmp_path / "t.npy", tmp_path / "a.flac", detector=detector)
    assert clicks_at(tmp_path / "a.flac")[0] == pytest.approx(0.5 + delay, abs=0.01)


def test_the_result_is_told_in_text_and_json(clip: Path, tmp_path: Path, detector: MtcnnDetector) -> None:
    result = extract(clip, tmp_path / "t.pth", tmp_path / "a.wav", detector=detector)
    told = json.loads(json.dumps(result.as_dict()))
    assert (told["frames"], told["fps"], told["width"], told["height"]) == (FPS, FPS, 512, 512)
    assert told["kps_sequence_save_path"] == str(tmp_path / "t.pth")
    assert result.as_text().splitlines()[1:] == [f"wrote {tmp_path / 't.pth'}", f"wrote {tmp_path / 'a.wav'}"]


def test_an_array_has_its_frames_size_and_rate_beside_it(clip: Path, tmp_path: Path, detector: MtcnnDetector) -> None:
    result = extract(clip, tmp_path / "t.npy", detector=detector)
    assert json.loads((tmp_path / "t.npy.json").read_text()) == {"width": 512, "height": 512, "fps": FPS}
    assert result.as_text().endswith(f"wrote {tmp_path / 't.npy'}, its frame's size and rate in t.npy.json")


def empty(folder: Path) -> Path:
    (folder / "x.mp4").touch()
    return folder / "x.mp4"


def text(folder: Path) -> Path:
    (folder / "x.mp4").write_text("not a video at all, only words " * 50)
    return folder / "x.mp4"


def picture(folder: Path) -> Path:
    cv2.imwrite(str(folder / "x.png"), np.zeros((64, 64, 3), np.uint8))
    return folder / "x.png"


def sound_only(folder: Path) -> Path:
    with av.open(str(folder / "x.m4a"), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = 16_000, Fraction(1, 16_000), 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return folder / "x.m4a"


def playlist(folder: Path) -> Path:
    (folder / "x.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.ts\n#EXT-X-ENDLIST\n")
    return folder / "x.m3u8"


def list_of_another(folder: Path) -> Path:
    """A file that asks for another one to be read in its place."""
    faceless(folder).rename(folder / "private.mp4")
    (folder / "x.mp4").write_text("ffconcat version 1.0\nfile private.mp4\n")
    return folder / "x.mp4"


def faceless(folder: Path) -> Path:
    return write_video(folder / "x.mp4", [np.full((64, 64, 3), 90, np.uint8)] * 3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nowhere.mp4", "does not exist"),
        (lambda folder: folder / ("x" * 300 + ".mp4"), "does not exist"),
        (lambda folder: folder, "is not a file"),
        (empty, "is empty"),
        (text, "not readable as video"),
        (playlist, "not readable as video"),
        (list_of_another, "not readable as video"),
        (picture, "is a still picture"),
        (sound_only, "has no video stream"),
        (faceless, "no face in any of its 3 frames"),
    ],
)
def test_a_bad_video_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, detector: MtcnnDetector, make: Callable[[Path], Path], words: str
) -> None:
    video = make(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=words) as refusal:
        extract(video, tmp_path / "track.pth", detector=detector)
    assert str(video) in str(refusal.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_truncated_video_is_refused(clip: Path, tmp_path: Path, detector: MtcnnDetector) -> None:
    (tmp_path / "x.mp4").write_bytes(clip.read_bytes()[:20_000])
    with pytest.raises(UserError, match="not readable as video"):
        extract(tmp_path / "x.mp4", tmp_path / "t.pth", detector=detector)


def test_sound_without_a_sample_is_refused_and_no_track_is_written(
    clip: Path, tmp_path: Path, detector: MtcnnDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vexpress_trt.runtime.extract_audio.sound_planes", lambda *_, **__: iter(()))
    with pytest.raises(UserError, match="no sound that can be read"):
        extract(clip, tmp_path / "t.pth", tmp_path / "a.wav", detector=detector)
    assert list(tmp_path.iterdir()) == []


def test_sound_asked_for_and_not_there_is_refused_before_any_work(
    tmp_path: Path, head: np.ndarray, monkeypatch: pytest.MonkeyPatch, detector: MtcnnDetector
) -> None:
    video = write_video(tmp_path / "silent.mp4", [scene(head, 0)])
    monkeypatch.setattr(detector, "detect", lambda image: pytest.fail("faces were sought"))
    with pytest.raises(UserError, match=r"silent\.mp4 has no sound: leave out --audio_save_path"):
        extract(video, tmp_path / "t.pth", tmp_path / "a.wav", detector=detector)


@pytest.mark.parametrize(
    ("track", "sound", "words"),
    [
        ("track.txt", None, r"a track is a \.pth or \.npy file"),
        ("track", None, r"a track is a \.pth or \.npy file"),
        ("t.pth", "a.ogg", r"sound is written as \.wav, \.flac, \.mp3, \.m4a"),
        ("folder.pth", None, "a folder of that name exists"),
        ("a_file/t.pth", None, "t.pth: not a directory"),
        ("x" * 300 + ".pth", None, "name too long"),
    ],
)
def test_a_bad_output_is_refused_before_the_video_is_opened(
    tmp_path: Path, detector: MtcnnDetector, track: str, sound: str | None, words: str
) -> None:
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "a_file").touch()
    with pytest.raises(UserError, match=words):
        extract(tmp_path / "nowhere.mp4", tmp_path / track, sound and tmp_path / sound, detector=detector)


def test_the_video_itself_is_never_overwritten(tmp_path: Path, detector: MtcnnDetector) -> None:
    video = sound_only(tmp_path)
    with pytest.raises(UserError, match="it is the video that is read"):
        extract(video, tmp_path / "t.pth", video, detector=detector)


def test_an_interruption_leaves_nothing_behind(clip: Path, tmp_path: Path, detector: MtcnnDetector) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(clip, tmp_path / "t.pth", tmp_path / "a.wav", detector=detector, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_track_that_cannot_be_saved_leaves_no_sound_either(
    clip: Path, tmp_path: Path, detector: MtcnnDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UserError("cannot write")

    monkeypatch.setattr("vexpress_trt.runtime.extract.save_track", fail)
    with pytest.raises(UserError, match="cannot write"):
        extract(clip, tmp_path / "t.pth", tmp_path / "a.wav", detector=detector)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tys", "10", "AOC"])
def test_real_clips_give_the_tracks_that_came_with_them(
    shared_dir: Path, tmp_path: Path, detector: MtcnnDetector, name: str
) -> None:
    sample = shared_dir / "samples" / name
    result = extract(sample / "gt.mp4", tmp_path / "track.npy", tmp_path / "a.wav", detector=detector)
    given = load_track(sample / "kps.pth").points
    count = min(len(given), len(result.points))
    assert abs(len(given) - len(result.points)) <= 1
    assert np.linalg.norm(result.points[:count] - given[:count], axis=-1).mean() <= 3
