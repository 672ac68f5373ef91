"""The sound of a video as a file of its own, in step with the picture."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vexpress_trt.engines.errors import UserError

IN_STEP = 0.02  # seconds that sound and picture may begin apart before the sound is padded or cut
MAX_DELAY = 60.0  # seconds; beyond it the time stamps are wrong rather than the sound late


@dataclass(frozen=True)
class _Format:
    """A container, the codec to encode with, the sample format it takes, and what needs no encoding at all."""

    container: str
    codec: str
    samples: str
    copies: tuple[str, ...]


_FORMATS = {
    ".wav": _Format("wav", "pcm_s16le", "s16", ("pcm_s16le",)),
    ".flac": _Format("flac", "flac", "s16", ("flac",)),
    ".mp3": _Format("mp3", "libmp3lame", "fltp", ("mp3", "mp3float")),
    ".m4a": _Format("ipod", "aac", "fltp", ("aac", "alac")),
}
AUDIO_SUFFIXES = tuple(_FORMATS)


def write_audio(source: Path, target: Path, suffix: str) -> None:
    """Write the first audio stream of `source` to `target` in the format that `suffix` names (see `AUDIO_SUFFIXES`).

    The stream is copied where the format can hold it, else encoded: 16 bits, MP3 or AAC, mono or stereo, at the
    source's rate where the codec has it. Where the sound begins later or earlier than the picture, silence is put
    before it or its beginning is cut, so that both start together.

    Raises UserError where there is no audio stream or it cannot be decoded; what `target` then holds is of no use.
    """
    form = _FORMATS[suffix]
    with av.open(str(source)) as media, av.open(str(target), "w", format=form.container) as output:
        if not media.streams.audio:
            raise UserError(f"{source} has no sound: leave out --audio_save_path or choose another video")
        stream = media.streams.audio[0]
        delay = _start(stream) - _start(media.streams.video[0]) if media.streams.video else 0.0
        if abs(delay) > MAX_DELAY:
            delay = 0.0
        if abs(delay) <= IN_STEP and stream.codec_context.name in form.copies:
            _copy(media, stream, output)
            return
        try:
            _encode(media, stream, output, form, delay)
        except (av.InvalidDataError, av.DecoderNotFoundError) as problem:
            raise UserError(
                f"the sound of {source} is damaged ({problem.strerror}): repair the video first"
            ) from problem


def _start(stream: av.AudioStream | av.VideoStream) -> float:
    """When a stream begins, in seconds."""
    return 0.0 if stream.start_time is None else float(stream.start_time * stream.time_base)


def _copy(media: av.container.InputContainer, stream: av.AudioStream, output: av.container.OutputContainer) -> None:
    copied = output.add_stream_from_template(stream)
    for packet in media.demux(stream):
        if packet.dts is not None:  # the demuxer ends with an empty packet
            packet.stream = copied
            output.mux(packet)


def _encode(
    media: av.container.InputContainer,
    stream: av.AudioStream,
    output: av.container.OutputContainer,
    form: _Format,
    delay: float,
) -> None:
    rates = av.Codec(form.codec, "w").audio_rates
    rate = stream.codec_context.sample_rate
    if rates and rate not in rates:
        rate = 48000
    channels = 1 if stream.codec_context.channels == 1 else 2
    layout = "mono" if channels == 1 else "stereo"
    encoded = output.add_stream(form.codec, rate=rate, layout=layout)
    resampler = av.AudioResampler(format=form.samples, layout=layout, rate=rate)
    # PyAV's arrays: planar formats [channels, N], packed ones [1, N * channels].
    step = 1 if form.samples.endswith("p") else channels
    written = 0
    for block in _shifted(_decoded(media, stream, resampler), round(delay * rate) * step):
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format=form.samples, layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), written
        written += frame.samples
        output.mux(encoded.encode(frame))
    output.mux(encoded.encode(None))


def _decoded(
    media: av.container.InputContainer, stream: av.AudioStream, resampler: av.AudioResampler
) -> Iterator[np.ndarray]:
    for frame in media.decode(stream):
        frame.pts = None
        yield from (block.to_ndarray() for block in resampler.resample(frame))
    yield from (block.to_ndarray() for block in resampler.resample(None))


def _shifted(blocks: Iterator[np.ndarray], shift: int) -> Iterator[np.ndarray]:
    """Blocks [rows, N] with `shift` columns of zeros before them or, where it is negative, as many columns cut off."""
    for block in blocks:
        if shift > 0:
            yield np.zeros((block.shape[0], shift), block.dtype)
            shift = 0
        cut = min(-shift, block.shape[1])
        shift += cut
        if cut < block.shape[1]:
            yield block[:, cut:]
