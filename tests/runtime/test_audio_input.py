"""Speech in: what every kind of file decodes to, and the sentence for every kind that cannot be used."""

import logging
import os
import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime import audio_input
from vexpress_trt.runtime.audio_input import decode_audio, measure, opened, sound_planes
from vexpress_trt.runtime.resample import sinc_resample


def tone(rate: int, seconds: float = 1.0, hertz: float = 300.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate))[None].astype(np.float32)


def write_wav(path: Path, values: np.ndarray) -> Path:
    """16-bit samples [S, channels] at 16 kHz."""
    with wave.open(str(path), "wb") as output:
        output.setparams((values.shape[1], 2, 16_000, 0, "NONE", ""))
        output.writeframes(values.tobytes())
    return path


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    count = min(len(a), len(b))
    return float(np.corrcoef(a[:count], b[:count])[0, 1])


@pytest.mark.parametrize("upstream", [False, True])
def test_16_khz_mono_wav_is_exact(tmp_path, make_sound, upstream):
    values = np.random.default_rng(0).integers(-32768, 32768, 5000)
    file = make_sound(tmp_path / "a.wav", values[None] / 32768.0, 16_000)
    audio = decode_audio(file, upstream=upstream)
    assert (audio.source_rate, audio.channels, audio.duration) == (16_000, 1, 5000 / 16_000)
    assert audio.samples.dtype == np.float32
    np.testing.assert_array_equal(audio.samples, (values / 32768.0).astype(np.float32))


@pytest.mark.parametrize("upstream", [False, True])
def test_float_wav_is_exact(tmp_path, make_sound, upstream):
    samples = np.random.default_rng(0).uniform(-1, 1, (1, 5000)).astype(np.float32)
    file = make_sound(tmp_path / "a.wav", samples, 16_000, "pcm_f32le", "flt")
    np.testing.assert_array_equal(decode_audio(file, upstream=upstream).samples, samples[0])


@pytest.mark.parametrize("upstream", [False, True])
@pytest.mark.parametrize("channels", [6, 8, 12, 24, 64])
def test_the_mean_of_any_number_of_channels(tmp_path, channels, upstream):
    values = np.random.default_rng(0).integers(-32768, 32768, (4000, channels)).astype("<i2")
    audio = decode_audio(write_wav(tmp_path / "a.wav", values), upstream=upstream)
    assert audio.channels == channels
    np.testing.assert_allclose(audio.samples, values.mean(axis=1) / 32768, atol=1e-6)


@pytest.mark.parametrize("layout", ["mono", "stereo"])
@pytest.mark.parametrize("channels", [9, 64])
def test_channels_of_unknown_places_are_mixed_to_their_mean(tmp_path, channels, layout):
    values = np.random.default_rng(0).integers(-32768, 32768, (4000, channels)).astype("<i2")
    file = write_wav(tmp_path / "a.wav", values)
    with opened(file) as media:
        planes = np.concatenate(list(sound_planes(media, file, rate=16_000, layout=layout)), axis=1)
    assert planes.shape == (1 if layout == "mono" else 2, 4000)
    np.testing.assert_allclose(planes, [values.mean(axis=1) / 32768] * len(planes), atol=1e-6)


@pytest.mark.parametrize("upstream", [False, True])
@pytest.mark.parametrize("width", [1, 3, 4])
def test_every_width_of_integer_is_exact(tmp_path, width, upstream):
    """8 bits are stored without a sign, 24 packed; the loudest values at both ends are among them."""
    top = 1 << (8 * width - 1)
    values = np.random.default_rng(0).integers(-top, top, 4000)
    values[:2] = -top, top - 1
    stored = values + top if width == 1 else values
    file = tmp_path / "a.wav"
    with wave.open(str(file), "wb") as output:
        output.setparams((1, width, 16_000, 0, "NONE", ""))
        output.writeframes(b"".join(int(v).to_bytes(width, "little", signed=width > 1) for v in stored))
    np.testing.assert_array_equal(decode_audio(file, upstream=upstream).samples, (values / top).astype(np.float32))


@pytest.mark.parametrize("upstream", [False, True])
@pytest.mark.parametrize("channels", [2, 6])
def test_several_channels_become_their_mean(tmp_path, make_sound, channels, upstream):
    values = np.random.default_rng(0).integers(-9000, 9000, (channels, 4000)) / 32768.0
    audio = decode_audio(make_sound(tmp_path / "a.wav", values, 16_000), upstream=upstream)
    assert audio.channels == channels
    np.testing.assert_allclose(audio.samples, values.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "codec", "form", "rate"),
    [
        ("a.wav", "pcm_s16le", "s16", 44_100),
        ("a.mp3", "libmp3lame", "fltp", 44_100),
        ("a.m4a", "aac", "fltp", 16_000),
        ("a.mp4", "aac", "fltp", 48_000),
        ("a.flac", "flac", "s16", 22_050),
        ("a.opus", "libopus", "flt", 48_000),
        ("a.ogg", "libopus", "flt", 48_000),
        ("a.mkv", "flac", "s16", 16_000),
    ],
)
def test_formats_keep_length_and_time(tmp_path, make_sound, name, codec, form, rate):
    """Within a frame of video at most; encoder delay and padding are not heard."""
    file = make_sound(tmp_path / name, tone(rate), rate, codec, form)
    audio = decode_audio(file)
    assert audio.source_rate == rate
    assert audio.duration == pytest.approx(1.0, abs=0.01)
    assert correlation(audio.samples, tone(16_000)[0]) > 0.99


def test_the_sound_of_a_video(tmp_path):
    file = tmp_path / "talk.mp4"
    with av.open(str(file), "w") as output:
        video = output.add_stream("libx264", rate=25)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = output.add_stream("aac", rate=44_100, layout="stereo")
        for index in range(25):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 9 * index, np.uint8), format="rgb24")
            picture.pts = index
            output.mux(video.encode(picture))
        frame = av.AudioFrame.from_ndarray(np.repeat(tone(44_100), 2, axis=0), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 44_100, 0, Fraction(1, 44_100)
        for stream, last in ((audio, frame), (audio, None), (video, None)):
            output.mux(stream.encode(last))
    sound = decode_audio(file)
    assert (sound.source_rate, sound.channels) == (44_100, 2)
    assert sound.duration == pytest.approx(1.0, abs=0.002)
    assert correlation(sound.samples, tone(16_000)[0]) > 0.99


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_resampling_keeps_the_last_samples(tmp_path, make_sound, rate):
    audio = decode_audio(make_sound(tmp_path / "a.wav", tone(rate), rate))
    assert abs(len(audio.samples) - 16_000) <= 1


def test_upstream_resamples_each_channel_then_takes_the_mean(tmp_path, make_sound):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 4410)).astype(np.float32)
    file = make_sound(tmp_path / "a.wav", samples, 44_100, "pcm_f32le", "flt")
    expected = sinc_resample(samples, 44_100, 16_000).mean(axis=0)
    np.testing.assert_array_equal(decode_audio(file, upstream=True).samples, expected)


def test_real_samples_decode_to_their_length(shared_dir):
    for name, seconds in (("10", 4.416), ("AOC", 4.574), ("tys", 4.032)):
        for upstream in (False, True):
            audio = decode_audio(shared_dir / "samples" / name / "aud.mp3", upstream=upstream)
            assert audio.duration == pytest.approx(seconds, abs=0.001)


def test_quality_of_clear_quiet_clipped_and_noisy_speech(speech):
    samples = speech[0]
    clear = measure(samples)
    assert -30 < clear.level_db < -10
    assert clear.clipped == 0
    assert clear.noise_db > 30
    assert measure(samples * 0.1).level_db == pytest.approx(clear.level_db - 20, abs=0.01)
    assert measure(np.clip(samples * 20, -1, 1)).clipped > 0.2
    assert measure(samples + 0.05 * np.random.default_rng(1).standard_normal(len(samples))).noise_db < 15
    assert measure(samples[:100]).level_db < 0  # shorter than one piece


def refusal(path, **options) -> str:
    with pytest.raises(UserError) as error:
        decode_audio(path, **options)
    sentence = str(error.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


def test_missing_empty_and_wrongly_named_files(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.wav")
    assert "does not exist" in refusal(tmp_path / ("x" * 300 + ".wav"))
    (tmp_path / "folder.wav").mkdir()
    assert "not a file" in refusal(tmp_path / "folder.wav")
    (tmp_path / "empty.wav").touch()
    assert "is empty" in refusal(tmp_path / "empty.wav")
    (tmp_path / "a.txt").write_text("hello")
    assert "suffix .txt is none of .wav, .mp3" in refusal(tmp_path / "a.txt")


def test_huge_files_are_refused_unread(tmp_path):
    with open(tmp_path / "huge.wav", "wb") as file:
        os.truncate(file.fileno(), audio_input.MAX_FILE_BYTES + 1)  # sparse
    assert "over the limit of 4 GiB" in refusal(tmp_path / "huge.wav")


def riff(form: bytes, data: bytes, stated: int | None = None, extra: bytes = b"") -> bytes:
    """A WAV file from its `fmt ` chunk and its data, whose stated length may be a lie."""
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + extra
    chunks += b"data" + struct.pack("<I", len(data) if stated is None else stated) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def pcm_form(tag: int = 1, channels: int = 1, rate: int = 16_000) -> bytes:
    return struct.pack("<HHIIHH", tag, channels, rate, 2 * rate & 0xFFFFFFFF, 2 * channels, 16)


TONE = (tone(16_000)[0] * 32768).astype("<i2").tobytes()


@pytest.mark.parametrize("stated", [0xFFFFFFFF, 0x7FFFFFFF, 2 * len(TONE)])
def test_a_length_stated_too_large_is_not_believed(tmp_path, stated):
    """As in a WAV that was written to a pipe, or one that was cut off."""
    (tmp_path / "a.wav").write_bytes(riff(pcm_form(), TONE, stated))
    assert decode_audio(tmp_path / "a.wav").duration == 1.0


def test_tags_need_not_be_utf_8(tmp_path):
    """Windows recorders write titles in the code page of the day."""
    title = "Grüße aus Köln".encode("latin-1")
    info = b"INFOINAM" + struct.pack("<I", len(title)) + title
    (tmp_path / "a.wav").write_bytes(riff(pcm_form(), TONE, extra=b"LIST" + struct.pack("<I", len(info)) + info))
    assert decode_audio(tmp_path / "a.wav").duration == 1.0


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (pcm_form(tag=0x1234), "kind that is not known"),
        (pcm_form(rate=0), "no sampling rate|not readable"),
        (pcm_form(rate=0x7FFFFFFF), "not readable"),
        (pcm_form(channels=0), "not readable|no sound|damaged"),
    ],
)
def test_a_header_that_makes_no_sense(tmp_path, form, words):
    (tmp_path / "a.wav").write_bytes(riff(form, TONE))
    with pytest.raises(UserError, match=words):
        decode_audio(tmp_path / "a.wav")


def test_a_header_alone(tmp_path):
    (tmp_path / "a.wav").write_bytes(riff(pcm_form(), b""))
    assert "holds no sound" in refusal(tmp_path / "a.wav")


def test_what_lies_in_a_file_counts_not_how_it_is_named(tmp_path, make_sound):
    file = make_sound(tmp_path / "a.flac", tone(16_000), 16_000, "flac").rename(tmp_path / "a.WAV")
    assert decode_audio(file).duration == 1.0


def test_damage_anywhere_ends_in_sound_or_in_a_sentence(tmp_path, make_sound):
    """Every kind of file with a few bytes changed or its end cut off."""
    random = np.random.default_rng(0)
    kinds = [("a.wav", "pcm_s16le", "s16"), ("a.mp3", "libmp3lame", "fltp"), ("a.m4a", "aac", "fltp")]
    kinds += [("a.flac", "flac", "s16"), ("a.ogg", "libopus", "flt")]
    refused = 0
    for name, codec, form in kinds:
        file = make_sound(tmp_path / name, tone(48_000, 0.3), 48_000, codec, form)
        whole = file.read_bytes()
        for _ in range(12):
            content = bytearray(whole)
            for place in random.integers(0, min(300, len(whole)), random.integers(1, 6)):
                content[place] = random.integers(0, 256)
            file.write_bytes(content[: random.integers(1, 2 * len(content))])
            try:
                decode_audio(file)
            except UserError as sentence:
                refused += 1
                assert str(file) in str(sentence)
    assert 0 < refused < 60


@pytest.mark.parametrize("content", [b"RIFF", b"not a sound at all" * 100, bytes(5000), b"\xff\xfb\x90\x00" * 3])
def test_corrupt_files(tmp_path, content):
    for name in ("a.wav", "a.mp3", "a.m4a"):
        (tmp_path / name).write_bytes(content)
        assert "not readable as sound" in refusal(tmp_path / name)


def test_a_file_damaged_throughout_is_refused(tmp_path, make_sound):
    file = make_sound(tmp_path / "a.flac", tone(16_000, 3), 16_000, "flac")
    content = bytearray(file.read_bytes())
    content[500:] = np.random.default_rng(0).integers(0, 256, len(content) - 500, dtype=np.uint8).tobytes()
    file.write_bytes(content)
    assert "a.flac" in refusal(file)


def test_one_damaged_packet_is_left_out_with_a_warning(tmp_path, make_sound, caplog):
    file = make_sound(tmp_path / "a.aac", tone(16_000, 10), 16_000, "aac", "fltp")
    content = bytearray(file.read_bytes())
    frames = [at for at in range(len(content) - 1) if content[at] == 0xFF and content[at + 1] & 0xF6 == 0xF0]
    start = frames[len(frames) // 2] + 7
    content[start : start + 30] = b"\xff" * 30
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING, "vexpress"):
        audio = decode_audio(file)
    assert audio.duration == pytest.approx(10.0, abs=0.3)
    assert "damaged and left out" in caplog.text


def test_a_video_without_sound(tmp_path):
    file = tmp_path / "mute.mp4"
    with av.open(str(file), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode(None))
    assert "no audio stream" in refusal(file)


def test_silent_and_not_finite_sound(tmp_path, make_sound):
    assert "is silent" in refusal(make_sound(tmp_path / "a.wav", np.zeros((1, 16_000)), 16_000))
    broken = tone(16_000)
    broken[0, 100] = np.nan
    assert "not numbers" in refusal(make_sound(tmp_path / "b.wav", broken, 16_000, "pcm_f32le", "flt"))


@pytest.mark.parametrize("upstream", [False, True])
def test_whole_numbers_stored_as_fractions_are_refused(tmp_path, make_sound, upstream):
    """Full scale is 1: FFmpeg's AAC encoder, which would put the sound into the clip, hangs over 1e5 and more."""
    file = make_sound(tmp_path / "a.wav", tone(16_000) * 32768, 16_000, "pcm_f32le", "flt")
    assert "over 100 times full scale" in refusal(file, upstream=upstream)
    loud = make_sound(tmp_path / "b.wav", tone(16_000) * 10, 16_000, "pcm_f32le", "flt")
    assert np.abs(decode_audio(loud, upstream=upstream).samples).max() == pytest.approx(5, rel=1e-3)


def test_too_long_sound_is_refused_while_decoding(tmp_path, make_sound, monkeypatch):
    monkeypatch.setattr(audio_input, "MAX_SECONDS", 0.5)
    file = make_sound(tmp_path / "a.wav", tone(16_000), 16_000)
    for upstream in (False, True):
        assert "lasts over" in refusal(file, upstream=upstream)


def test_a_playlist_in_disguise_opens_nothing(tmp_path, make_sound):
    make_sound(tmp_path / "secret.wav", tone(16_000), 16_000)
    playlist = tmp_path / "a.mp3"
    for text in ("ffconcat version 1.0\nfile secret.wav\n", "#EXTM3U\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n"):
        playlist.write_text(text)
        assert "not readable as sound" in refusal(playlist)


def test_a_name_with_a_colon_is_a_file(tmp_path, make_sound, monkeypatch):
    make_sound(tmp_path / "a.wav", tone(16_000), 16_000).rename(tmp_path / "http:speech.wav")
    monkeypatch.chdir(tmp_path)
    assert decode_audio(Path("http:speech.wav")).duration == 1.0
