"""The sound of a video as a file of its own, in step with the picture."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.audio_input import sound_planes
from vexpress_trt.runtime.extract_video import opened_video
from vexpress_trt.runtime.muxer import muxer

IN_STEP = 0.045  # seconds that sound and picture may be apart before a viewer notices (ITU-R BT.1359)
MAX_DELAY = 60.0  # seconds; beyond it the time stamps are wrong rather than the sound late


@dataclass(frozen=True)
class _Format:
    """A container, the codec to encode with, and the codecs that need no encoding."""

    container: str
    codec: str
    copies: tuple[str, ...]


_FORMATS = {
    ".wav": _Format("wav", "pcm_s16le", ("pcm_s16le",)),
    ".flac": _Format("flac", "flac", ("flac",)),
    # MP3 is encoded anew even from MP3: a copied stream lost its first 93 ms with FFmpeg 7, for want of its delay.
    ".mp3": _Format("mp3", "libmp3lame", ()),
    ".m4a": _Format("ipod", "aac", ("aac", "alac")),
}
AUDIO_SUFFIXES = tuple(_FORMATS)


def write_audio(source: Path, target: Path, suffix: str) -> None:
    """Write the first audio stream of video `source` to `target` in the format that `suffix` names (`AUDIO_SUFFIXES`).

    The stream is copied where the format can hold it, else encoded: 16 bits, MP3 or AAC, mono or stereo, at the
    source's rate where the codec has it. Where the sound begins later or earlier than the picture, silence is put
    before it or its beginning is cut, so that both start together.

    Raises UserError where there is no audio stream or it cannot be decoded; what `target` then holds is of no use.
    """
    form = _FORMATS[suffix]
    with opened_video(source) as (media, _):
        require_sound(media, source)
        stream = media.streams.audio[0]
        delay = _start(source, sound=True) - _start(source, sound=False)
        delay = 0.0 if abs(delay) <= IN_STEP or abs(delay) > MAX_DELAY else delay
        with muxer(target, form.container) as output:
            if delay == 0 and stream.codec_context.name in form.copies:
                written = _copy(media, stream, output)
            else:
                written = _encode(media, output, form, delay, source)
    if not written:
        raise UserError(f"{source} holds no sound that can be read: repair it, or leave out --audio_save_path")


def require_sound(media: av.container.InputContainer, source: Path) -> None:
    """Raise UserError where a video has no sound to write."""
    if not media.streams.audio:
        raise UserError(f"{source} has no sound: leave out --audio_save_path or choose another video")
    if media.streams.audio[0].codec_context is None or not media.streams.audio[0].rate:
        raise UserError(f"{source} has sound of an unknown kind: convert it, or leave out --audio_save_path")


def _start(source: Path, *, sound: bool) -> float:
    """When the first frame of sound or picture begins, in seconds; a stream's own word on it is wrong in Matroska."""
    with opened_video(source) as (media, picture), suppress(av.FFmpegError):
        for frame in media.decode(media.streams.audio[0] if sound else picture):
            return frame.time or 0.0
    return 0.0


def _copy(media: av.container.InputContainer, stream: av.AudioStream, output: av.container.OutputContainer) -> int:
    """How many packets there were to copy."""
    copied = output.add_stream_from_template(stream)
    count = 0
    for packet in media.demux(stream):
        if packet.dts is not None:  # the demuxer ends with an empty packet
            packet.stream = copied
            output.mux(packet)
            count += 1
    return count


def _encode(
    media: av.container.InputContainer, output: av.container.OutputContainer, form: _Format, delay: float, source: Path
) -> int:
    """How many samples there were to encode."""
    stream = media.streams.audio[0]
    rates = av.Codec(form.codec, "w").audio_rates
    rate = stream.rate if not rates or stream.rate in rates else 48000
    layout = "mono" if stream.channels == 1 else "stereo"
    encoded = output.add_stream(form.codec, rate=rate, layout=layout)
    written = 0
    for piece in _shifted(sound_planes(media, source, rate=rate, layout=layout), round(delay * rate)):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), written
        written += frame.samples
        output.mux(encoded.encode(frame))
    output.mux(encoded.encode(None))
    return written


def _shifted(pieces: Iterator[np.ndarray], shift: int) -> Iterator[np.ndarray]:
    """Pieces [channels, n] with `shift` zeros before them or, where it is negative, as many samples cut off."""
    for piece in pieces:
        if shift > 0:
            yield np.zeros((piece.shape[0], shift), piece.dtype)
            shift = 0
        cut = min(-shift, piece.shape[1])
        shift += cut
        if cut < piece.shape[1]:
            yield piece[:, cut:]
