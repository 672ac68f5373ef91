"""The MP4: its length, sound and colours, and that it is whole or absent."""

import errno
import os
import subprocess
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import psutil
import pytest
from av.video.reformatter import ColorRange, Colorspace

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime import muxer as muxer_module
from vexpress_trt.runtime.frame import Frame
from vexpress_trt.runtime.summary import Stopwatch
from vexpress_trt.runtime.video_output import VideoWriter, check_output_path, encode, output_target

WIDTH, HEIGHT = 96, 64


def flat(colour: tuple[int, int, int] = (90, 120, 60)) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (HEIGHT, WIDTH, 3))


@pytest.fixture
def wav(tmp_path, make_sound, speech) -> Path:
    return make_sound(tmp_path / "speech.wav", speech, 16_000)


def written(path: Path, audio: Path, frames: int, fps: float, image: np.ndarray | None = None) -> Path:
    with VideoWriter(path, WIDTH, HEIGHT, fps, audio_path=audio, frames=frames) as writer:
        for _ in range(frames):
            writer.write(flat() if image is None else image)
    return path


def decoded_sound(path: Path) -> np.ndarray:
    with av.open(str(path)) as media:
        return np.concatenate([frame.to_ndarray() for frame in media.decode(audio=0)], axis=1)


@pytest.mark.parametrize(
    ("fps", "frames", "rate"),
    [
        (30, 45, Fraction(30)),
        (25, 30, Fraction(25)),
        (24, 36, Fraction(24)),
        (27.317, 40, Fraction(27317, 1000)),
        (30000 / 1001, 40, Fraction(30000, 1001)),
        (24, 1, Fraction(24)),
    ],
)
def test_picture_and_sound_last_the_same_at_exactly_the_rate(tmp_path, wav, fps, frames, rate):
    with av.open(str(written(tmp_path / "a.mp4", wav, frames, fps))) as media:
        video, audio = media.streams.video[0], media.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt, audio.codec_context.name) == ("h264", "yuv420p", "aac")
        assert (video.frames, video.average_rate, video.width, video.height) == (frames, rate, WIDTH, HEIGHT)
        assert float(video.duration * video.time_base) == pytest.approx(frames / fps, abs=1e-6)
        assert float(audio.duration * audio.time_base) == pytest.approx(frames / fps, abs=1e-3)
        times = [frame.time for frame in media.decode(video=0)]
    np.testing.assert_allclose(times, np.arange(frames) / fps, atol=1e-4)


def test_sound_is_in_step_with_the_picture(tmp_path, make_sound):
    """A click at one second is heard at one second, give or take 2 ms."""
    samples = np.zeros((1, 32_000), np.float32)
    samples[0, 16_000:16_016] = 0.9
    audio = make_sound(tmp_path / "click.wav", samples, 16_000)
    sound = decoded_sound(written(tmp_path / "a.mp4", audio, 60, 30))
    assert np.abs(sound[0]).argmax() == pytest.approx(16_008, abs=32)


@pytest.mark.parametrize(
    ("rate", "channels", "expected"),
    [
        (8_000, 1, (8_000, 1)),
        (44_100, 1, (44_100, 1)),
        (44_100, 2, (44_100, 2)),
        (96_000, 1, (48_000, 1)),
        (96_000, 2, (48_000, 2)),
        (48_000, 6, (48_000, 2)),
    ],
)
def test_rate_and_channels_of_the_sound(tmp_path, make_sound, rate, channels, expected):
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, (channels, rate)).astype(np.float32)
    audio = make_sound(tmp_path / "a.wav", samples, rate)
    with av.open(str(written(tmp_path / "a.mp4", audio, 30, 30))) as media:
        stream = media.streams.audio[0]
        assert (stream.rate, stream.channels) == expected
        assert float(stream.duration * stream.time_base) == pytest.approx(1.0, abs=0.002)


@pytest.mark.parametrize(("name", "codec", "rate"), [("a.mp3", "libmp3lame", 44_100), ("a.m4a", "aac", 48_000)])
def test_packed_sound_is_as_long_as_the_picture(tmp_path, make_sound, name, codec, rate):
    """A second of sound for a second of picture, the packing's delay and padding aside."""
    seconds = np.arange(rate) / rate
    audio = make_sound(tmp_path / name, 0.3 * np.sin(2000 * seconds)[None].astype(np.float32), rate, codec, "fltp")
    sound = decoded_sound(written(tmp_path / "a.mp4", audio, 30, 30))[0]
    level = np.sqrt((sound[: rate // 10 * 10].reshape(10, -1) ** 2).mean(axis=1))
    np.testing.assert_allclose(level, 0.3 / np.sqrt(2), rtol=0.15)


def test_sound_shorter_than_the_picture_just_ends(tmp_path, wav):
    with av.open(str(written(tmp_path / "a.mp4", wav, 90, 30))) as media:
        video, audio = media.streams.video[0], media.streams.audio[0]
        assert float(video.duration * video.time_base) == pytest.approx(3.0)
        assert float(audio.duration * audio.time_base) == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize("colour", [(200, 40, 90), (255, 255, 255), (0, 0, 0), (0, 200, 0), (10, 20, 250)])
def test_colours_are_bt709_and_say_so(tmp_path, wav, colour):
    """Luma and colour difference of ITU-R BT.709 in the limited range, and the tags that tell a player."""
    red, green, blue = (value / 255 for value in colour)
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    expected = (16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748)
    with av.open(str(written(tmp_path / "a.mp4", wav, 2, 30, flat(colour)))) as media:
        frame = next(media.decode(video=0))
        context = media.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert [int(tag) for tag in tags] == [1, 1, 1, 1]
        planes = frame.to_ndarray()
    found = planes[10, 10], planes[HEIGHT + 4, 4], planes[HEIGHT * 5 // 4 + 4, 4]
    np.testing.assert_allclose(found, expected, atol=2)


@pytest.mark.parametrize("colour", [(200, 40, 90), (128, 128, 128), (0, 200, 0), (230, 180, 150)])
def test_colours_come_back_as_a_player_shows_them(tmp_path, wav, colour):
    with av.open(str(written(tmp_path / "a.mp4", wav, 2, 30, flat(colour)))) as media:
        frame = next(media.decode(video=0))
        options = {"src_colorspace": Colorspace.ITU709, "src_color_range": ColorRange.MPEG}
        shown = frame.reformat(format="rgb24", dst_color_range=ColorRange.JPEG, **options).to_ndarray()
    np.testing.assert_allclose(shown[8:-8, 8:-8].mean(axis=(0, 1)), colour, atol=3)


def test_pictures_survive(tmp_path, wav):
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    image = np.stack([x * 2, y * 3, 255 - x - y], axis=2).astype(np.uint8)
    with av.open(str(written(tmp_path / "a.mp4", wav, 3, 30, image))) as media:
        luma = next(media.decode(video=0)).to_ndarray()[:HEIGHT].astype(float)
    expected = 16 + 219 / 255 * (image @ [0.2126, 0.7152, 0.0722])
    assert np.sqrt(((luma - expected) ** 2).mean()) < 2


def test_index_comes_first_so_that_playing_can_start_at_once(tmp_path, wav):
    content = written(tmp_path / "a.mp4", wav, 30, 30).read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")


def test_nothing_is_there_before_the_end_and_nothing_else_after(tmp_path, wav):
    folder = tmp_path / "new" / "folder"
    with VideoWriter(folder / "a.mp4", WIDTH, HEIGHT, 30, audio_path=wav, frames=2) as writer:
        writer.write(flat())
        assert not (folder / "a.mp4").exists()
        writer.write(flat())
    assert os.listdir(folder) == ["a.mp4"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, UserError])
def test_an_interruption_leaves_the_folder_as_it_was(tmp_path, wav, failure):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.mp4").write_text("an older video")
    with (
        pytest.raises(failure),
        VideoWriter(folder / "a.mp4", WIDTH, HEIGHT, 30, audio_path=wav, frames=20) as writer,
    ):
        for _ in range(10):
            writer.write(flat())
        raise failure("stop")
    assert os.listdir(folder) == ["a.mp4"]
    assert (folder / "a.mp4").read_text() == "an older video"


def test_a_full_disk_is_one_sentence(tmp_path, wav):
    folder = tmp_path / "out"
    folder.mkdir()
    with (
        pytest.raises(UserError, match=r"cannot write .*a\.mp4: the disk is full"),
        VideoWriter(folder / "a.mp4", WIDTH, HEIGHT, 30, audio_path=wav, frames=20) as writer,
    ):
        writer.write(flat())
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(folder) == []


@pytest.mark.parametrize("share", [0.1, 0.6, 0.97])
def test_a_really_full_disk(tmp_path, make_sound, share):
    """Full at once, on the way, and when the file is closed."""
    noise = np.random.default_rng(0)
    audio = make_sound(tmp_path / "a.wav", noise.uniform(-0.9, 0.9, (2, 44_100)), 44_100)
    images = noise.integers(0, 256, (30, HEIGHT, WIDTH, 3), dtype=np.uint8)

    def write(path: Path) -> None:
        with VideoWriter(path, WIDTH, HEIGHT, 30, audio_path=audio, frames=len(images)) as writer:
            for image in images:
                writer.write(image)

    write(tmp_path / "whole.mp4")
    size = int((tmp_path / "whole.mp4").stat().st_size * share)
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        with pytest.raises(UserError, match="the disk is full"):
            write(disk / "a.mp4")
        assert os.listdir(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_unreadable_sound_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"nothing")
    with (
        pytest.raises(UserError, match="not readable as sound"),
        VideoWriter(tmp_path / "out" / "a.mp4", WIDTH, HEIGHT, 30, audio_path=tmp_path / "a.wav", frames=2),
    ):
        pass
    assert not (tmp_path / "out").exists()


def test_a_frame_of_another_size_is_a_programming_error(tmp_path, wav):
    with (
        pytest.raises(ValueError, match=r"\(64, 96, 3\), got \(96, 64, 3\)"),
        VideoWriter(tmp_path / "a.mp4", WIDTH, HEIGHT, 30, audio_path=wav, frames=2) as writer,
    ):
        writer.write(np.zeros((WIDTH, HEIGHT, 3), np.uint8))


def test_sound_is_read_only_as_far_as_the_picture_goes(tmp_path, make_sound):
    """A long clip's sound is never held in memory: after one frame, less than half a second of it was decoded."""
    audio = make_sound(tmp_path / "a.wav", np.full((1, 16_000 * 30), 0.1), 16_000)
    with (
        pytest.raises(KeyboardInterrupt),
        VideoWriter(tmp_path / "a.mp4", WIDTH, HEIGHT, 30, audio_path=audio, frames=900) as writer,
    ):
        writer.write(flat())
        assert 0 < writer._sound._position < 8_000
        raise KeyboardInterrupt


def test_memory_does_not_grow_with_the_clip(tmp_path, make_sound):
    """200 frames that would take 88 MB, after as many as the encoder likes to look ahead."""
    audio = make_sound(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (1, 16_000 * 10)), 16_000)
    noise = np.random.default_rng(0).integers(0, 256, (288, 512, 3), dtype=np.uint8)
    process, used = psutil.Process(), []
    with VideoWriter(tmp_path / "a.mp4", 512, 288, 30, audio_path=audio, frames=280, preset="ultrafast") as writer:
        for index in range(280):
            writer.write(np.roll(noise, index, axis=1))
            used.append(process.memory_info().rss)
    assert used[-1] - used[79] < 30 << 20


@pytest.mark.parametrize("name", ["100% #1?.mp4", "a%03d.mp4", "http:x.mp4", "-y.mp4", "grüße ☺.mp4", ".mp4.MP4"])
def test_any_name_is_only_a_name(tmp_path, wav, name, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    monkeypatch.chdir(folder)
    check_output_path(Path(name))
    written(Path(name), wav, 2, 30)
    assert os.listdir(folder) == [name]


def test_a_name_too_long_is_refused_before_work_starts(tmp_path):
    """Just short enough for a file, not for the temporary beside it."""
    for name in ("a" * 246 + ".mp4", "b" * 300 + ".mp4", "c" * 300 + "/a.mp4"):
        with pytest.raises(UserError, match="file name too long"):
            check_output_path(tmp_path / name)
    check_output_path(tmp_path / ("a" * 236 + ".mp4"))
    assert os.listdir(tmp_path) == []


def test_an_error_in_closing_does_not_hide_the_first_one(tmp_path, wav, monkeypatch):
    class Broken:
        def close(self) -> None:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(muxer_module.av, "open", lambda *arguments, **options: Broken())
    with pytest.raises(KeyboardInterrupt), muxer_module.muxer(tmp_path / "a.mp4", "mp4"):
        raise KeyboardInterrupt
    with pytest.raises(OSError, match="Input/output"), muxer_module.muxer(tmp_path / "a.mp4", "mp4"):
        pass


def test_output_paths_are_checked_before_work_starts(tmp_path):
    check_output_path(tmp_path / "a.mp4")
    check_output_path(tmp_path / "made" / "later" / "A.MP4")
    with pytest.raises(UserError, match=r"let the name end in \.mp4"):
        check_output_path(tmp_path / "a.avi")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(UserError, match="a folder of that name exists"):
        check_output_path(tmp_path / "folder.mp4")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a directory"):
        check_output_path(tmp_path / "file" / "a.mp4")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.mp4"]


def test_a_folder_without_permission_is_refused(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):  # the administrator may write everywhere but here
        folder = Path("/proc")
    with pytest.raises(UserError, match=f"cannot write {folder}"):
        check_output_path(folder / "a.mp4")


def test_a_dash_is_standard_output_unless_that_is_a_terminal(tmp_path, monkeypatch):
    assert output_target(tmp_path / "a.mp4") == tmp_path / "a.mp4"
    with pytest.raises(UserError, match=r"let the name end in \.mp4"):
        output_target(tmp_path / "a.avi")
    pipe = Pipe()
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=pipe, isatty=lambda: False))
    assert output_target(Path("-")) is pipe
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=pipe, isatty=lambda: True))
    with pytest.raises(UserError, match="lead it into a file or a player"):
        output_target(Path("-"))


def test_a_video_that_cannot_be_written_ends_the_making_of_frames(tmp_path, wav):
    ended = []

    def frames(height):
        try:
            for index in range(3):
                yield Frame(index, index / 30, np.zeros((height, WIDTH, 3), np.uint8))
        finally:
            ended.append(height)

    watch = Stopwatch()
    encode(frames(HEIGHT), VideoWriter(tmp_path / "a.mp4", WIDTH, HEIGHT, 30, audio_path=wav, frames=3), watch)
    assert (tmp_path / "a.mp4").exists() and watch.seconds["encode"] > 0
    refused, watched = frames(HEIGHT + 2), Stopwatch()
    with pytest.raises(ValueError, match="expected a frame of shape"):
        encode(refused, VideoWriter(tmp_path / "b.mp4", WIDTH, HEIGHT, 30, audio_path=wav, frames=3), watched)
    assert ended == [HEIGHT, HEIGHT + 2] and not (tmp_path / "b.mp4").exists()


class Pipe:
    """A stream that cannot be read, searched or told, as a pipe's end; remembers how long it was after each frame."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> int:
        self.data += bytes(data)
        return len(data)

    def flush(self) -> None:
        pass


def test_a_stream_gets_a_playable_video_while_frames_come(tmp_path, wav):
    pipe, lengths = Pipe(), []
    with VideoWriter(pipe, WIDTH, HEIGHT, 30.0, audio_path=wav, frames=45) as writer:
        for _ in range(45):
            writer.write(flat())
            lengths.append(len(pipe.data))
            if len(lengths) == 35:
                (tmp_path / "so_far.mp4").write_bytes(pipe.data)
    assert pipe.data[4:8] == b"ftyp"
    assert len(set(lengths)) > 2, "fragments leave as they are full, not all at the end"
    with av.open(str(tmp_path / "so_far.mp4")) as media:
        assert len(list(media.decode(video=0))) >= 15
    (tmp_path / "whole.mp4").write_bytes(pipe.data)
    with av.open(str(tmp_path / "whole.mp4")) as media:
        assert len(list(media.decode(video=0))) == 45
    sound, source = decoded_sound(tmp_path / "whole.mp4"), decoded_sound(wav)
    assert abs(sound.shape[1] - min(source.shape[1], 24_000)) < 2048  # 1.5 s at 16 kHz, but for the codec's delay


@pytest.mark.parametrize(("fps", "frames"), [(30, 45), (30000 / 1001, 40), (25, 1)])
def test_a_stream_shows_every_frame_as_long_as_a_file_does_and_sound_with_it(tmp_path, make_sound, fps, frames):
    samples = np.zeros((1, 32_000), np.float32)
    samples[0, 8_000:8_016] = 0.9
    audio, pipe = make_sound(tmp_path / "click.wav", samples, 16_000), Pipe()
    with VideoWriter(pipe, WIDTH, HEIGHT, fps, audio_path=audio, frames=frames) as writer:
        for _ in range(frames):
            writer.write(flat())
    (tmp_path / "stream.mp4").write_bytes(pipe.data)
    with av.open(str(tmp_path / "stream.mp4")) as media:
        times = [frame.time for frame in media.decode(video=0)]
    np.testing.assert_allclose(times, np.arange(frames) / fps, atol=1e-4)
    if frames > 1:
        assert np.abs(decoded_sound(tmp_path / "stream.mp4")[0]).argmax() == pytest.approx(8_008, abs=32)


@pytest.mark.parametrize("room", [0, 4000])
def test_a_stream_into_a_full_disk_is_one_sentence(wav, room):
    class Full(Pipe):
        def write(self, data: bytes) -> int:
            if len(self.data) + len(data) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    refused = pytest.raises(UserError, match="the stream takes no more of the video: no space left on device")
    with refused, VideoWriter(Full(), WIDTH, HEIGHT, 30.0, audio_path=wav, frames=60) as writer:
        for _ in range(60):
            writer.write(flat())


def test_a_reader_that_goes_away_is_a_broken_pipe(wav):
    class Gone(Pipe):
        def write(self, data: bytes) -> int:
            raise BrokenPipeError(errno.EPIPE, "gone")

    with pytest.raises(BrokenPipeError), VideoWriter(Gone(), WIDTH, HEIGHT, 30.0, audio_path=wav, frames=60) as writer:
        for _ in range(60):
            writer.write(flat())
