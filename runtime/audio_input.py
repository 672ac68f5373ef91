"""Speech in: any sound file, or the sound of a video, as 16 kHz mono float32."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.resample import sinc_resample
from vexpress_trt.runtime.waveform import Waveform

log = logging.getLogger("vexpress")
SAMPLE_RATE = 16_000
SUFFIXES = (".wav", ".mp3", ".m4a", ".aac", ".flac", ".opus", ".ogg", ".mp4", ".mov", ".mkv", ".webm")
MAX_FILE_BYTES = 4 << 30
MAX_SECONDS = 2 * 3600.0
SILENCE = 1e-4  # a peak below this is no speech: -80 dB of full scale
LOUDEST = 100.0  # full scale is 1; FFmpeg's AAC encoder never ends with samples of 1e5
_DAMAGED_SHARE = 0.02
_MEASURED_FRAME = SAMPLE_RATE // 50
# What a file holds decides how it is read, not its suffix: without these a playlist could fetch other files.
_OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "wav,w64,mp3,aac,flac,ogg,mov,matroska",
    "max_size": str(1 << 13),  # bytes of a WAV's packets, which are 1024 samples otherwise: slower to read
}


@dataclass(frozen=True, eq=False)
class Audio:
    """Decoded speech: float32 samples in about [-1, 1] at 16 kHz, and how the file held it."""

    waveform: Waveform
    source_rate: int
    channels: int

    @property
    def samples(self) -> np.ndarray:
        """All samples, [S]."""
        return self.waveform.read()

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.waveform) / SAMPLE_RATE


@dataclass(frozen=True)
class AudioQuality:
    """What can be heard of a recording's quality.

    `level_db`: RMS of the louder half of its 20 ms pieces, in dB of full scale. `clipped`: share of samples at full
    scale. `noise_db`: how far the quietest tenth of the pieces lies below the loudest tenth, in dB.
    """

    level_db: float
    clipped: float
    noise_db: float


def decode_audio(path: Path, *, upstream: bool = False) -> Audio:
    """Decode to 16 kHz, the mean of all channels.

    `upstream` resamples with the original's filter; otherwise FFmpeg's is used, and what an MP4's or M4A's last packet
    holds beyond the stated length is cut. Raises UserError when the file is missing, empty, too large, too long,
    damaged, of an unknown kind, without sound, or silent.
    """
    path = Path(path)
    _check_file(path)
    with opened(path) as media:
        stream = media.streams.audio[0]
        if upstream:
            planes = list(_limited(path, sound_planes(media, path), stream.rate))
            whole = np.concatenate(planes, axis=1) if planes else np.zeros((1, 0), np.float32)
            waveform = Waveform([sinc_resample(whole, stream.rate, SAMPLE_RATE).mean(axis=0)])
        else:
            planes = _limited(path, sound_planes(media, path, rate=SAMPLE_RATE), SAMPLE_RATE)
            waveform = Waveform(plane.mean(axis=0) for plane in planes)
            waveform.truncate(len(waveform) - _padding(media, len(waveform)))
        rate, channels = stream.rate, stream.channels
    if not len(waveform):
        raise UserError(f"{path} holds no sound: choose another file")
    if max(np.abs(block).max() for block in waveform.blocks()) < SILENCE:
        raise UserError(f"{path} is silent: choose a file with speech")
    return Audio(waveform, rate, channels)


def measure(samples: np.ndarray) -> AudioQuality:
    """The quality of 16 kHz float32 samples [S]; shorter than 20 ms counts as one piece."""
    pieces = max(1, len(samples) // _MEASURED_FRAME)
    whole = samples[: pieces * _MEASURED_FRAME].reshape(pieces, -1).astype(np.float64)
    rms = np.sort(np.sqrt((whole**2).mean(axis=1)))
    tenth = max(1, pieces // 10)
    quiet, loud = rms[:tenth].mean(), rms[-tenth:].mean()
    level = np.sqrt((rms[pieces // 2 :] ** 2).mean())
    return AudioQuality(
        level_db=20 * float(np.log10(level + 1e-9)),
        clipped=float((np.abs(samples) >= 0.999).mean()),
        noise_db=20 * float(np.log10((loud + 1e-9) / (quiet + 1e-9))),
    )


@contextmanager
def opened(path: Path) -> Iterator[av.container.InputContainer]:
    """A sound file opened for decoding. Raises UserError where it cannot be read or has no audio stream."""
    try:
        # Tags in another encoding than UTF-8 are common (Windows recorders) and must not stop the reading.
        media = av.open(f"file:{path}", options=dict(_OPEN_OPTIONS), metadata_errors="replace")
    except (av.FFmpegError, OSError) as problem:
        raise UserError(f"{path} is not readable as sound ({problem.strerror}): convert it or choose another") from None
    with media:
        if not media.streams.audio:
            raise UserError(f"{path} has no audio stream: choose a file with speech")
        if media.streams.audio[0].codec_context is None:
            raise UserError(f"{path}: its sound is of a kind that is not known here: convert it to WAV")
        if not media.streams.audio[0].rate:
            raise UserError(f"{path} is damaged, its sound has no sampling rate: convert it or choose another")
        yield media


def sound_planes(
    media: av.container.InputContainer, path: Path, *, rate: int | None = None, layout: str | None = None
) -> Iterator[np.ndarray]:
    """The first audio stream in pieces, float32 [channels, n], at this rate and layout (None: the stream's own).

    Where FFmpeg has no mix from the stream's layout to this one, each channel is the mean of all. A few damaged packets
    are left out with a warning. Raises UserError where there are more, and for samples that are not numbers or beyond
    LOUDEST.
    """
    try:
        for piece in _resampled(media.streams.audio[0], _frames(media, path), rate, layout):
            if not np.abs(piece).max(initial=0.0) <= LOUDEST:  # also catches NaN
                raise UserError(
                    f"{path} holds samples that are not numbers, or over {LOUDEST:g} times full scale: convert it or "
                    "choose another"
                )
            yield piece
    except av.FFmpegError as problem:
        raise UserError(f"{path} is not readable as sound ({problem.strerror}): convert it or choose another") from None


def _resampled(
    stream: av.AudioStream, frames: Iterator[av.AudioFrame], rate: int | None, layout: str | None
) -> Iterator[np.ndarray]:
    resampler, current, target, mixes = None, None, layout and av.AudioLayout(layout), True

    def planes(pieces: list[av.AudioFrame]) -> Iterator[np.ndarray]:
        for plane in map(_plane, pieces):
            yield plane if mixes else np.tile(plane.mean(axis=0), (target.nb_channels, 1))

    for frame in frames:
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != current:  # a stream may change its form on the way, a resampler may not
            if resampler is not None:
                yield from planes(resampler.resample(None))
            target = target or frame.layout
            mixes = _mixes(frame, target)
            to = target if mixes else frame.layout
            resampler = av.AudioResampler(format="flt", layout=to, rate=rate or stream.rate)
            current = form
        frame.pts = None  # a gap in the time stamps must not trip the resampler
        yield from planes(resampler.resample(frame))
    if resampler is not None:
        yield from planes(resampler.resample(None))


def _mixes(frame: av.AudioFrame, layout: av.AudioLayout) -> bool:
    """Whether FFmpeg mixes a frame's channels to a layout: not where it does not know what each of them is."""
    silence = av.AudioFrame(format=frame.format, layout=frame.layout, samples=1)
    silence.sample_rate = frame.sample_rate
    try:
        av.AudioResampler(format="flt", layout=layout, rate=frame.sample_rate).resample(silence)
    except av.FFmpegError:
        return False
    return True


def _plane(piece: av.AudioFrame) -> np.ndarray:
    """Float32 [channels, n] of interleaved samples: of separate planes PyAV knows eight, and reads beyond them."""
    return np.ascontiguousarray(piece.to_ndarray().reshape(-1, piece.layout.nb_channels).T)


def _frames(media: av.container.InputContainer, path: Path) -> Iterator[av.AudioFrame]:
    packets = damaged = 0
    for packet in media.demux(media.streams.audio[0]):
        packets += 1
        try:
            frames = packet.decode()
        except av.EOFError:
            break
        except av.FFmpegError:  # not only InvalidDataError: decoders have odd numbers for what they cannot read
            damaged += 1
            continue
        yield from frames
    if damaged > max(1, _DAMAGED_SHARE * packets):
        raise UserError(f"{path} is damaged in {damaged} of {packets} places: convert it or choose another")
    if damaged:
        log.warning(f"{path}: {damaged} of {packets} packets are damaged and left out")


def _check_file(path: Path) -> None:
    if not os.path.isfile(path):
        raise UserError(f"the audio {path} does not exist or is not a file: check --audio_path")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: the suffix {path.suffix or '(none)'} is none of {', '.join(SUFFIXES)}")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty: choose another file")
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"{path} has {size / 2**30:.1f} GiB, over the limit of {MAX_FILE_BYTES >> 30} GiB: cut it first"
        )


def _limited(path: Path, planes: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """The same pieces, float32 [channels, n], refused when too long: a file's word on its length is not trusted."""
    total = 0
    for plane in planes:
        total += plane.shape[1]
        if total > MAX_SECONDS * rate:
            raise UserError(f"{path} lasts over {MAX_SECONDS / 3600:g} hours: cut it first")
        yield plane


def _padding(media: av.container.InputContainer, decoded: int) -> int:
    """How many 16 kHz samples at the end only fill an MP4's last AAC packet."""
    stream = media.streams.audio[0]
    if not media.format.name.startswith("mov") or not stream.duration:
        return 0
    excess = decoded - round(stream.duration * stream.time_base * SAMPLE_RATE)
    packet = (stream.codec_context.frame_size or 0) * SAMPLE_RATE / stream.rate
    return excess if 0 < excess < packet else 0
