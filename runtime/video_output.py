"""The output: one H.264 encode with AAC sound, in an MP4 that is whole or absent, or as fragments in a stream."""

import sys
from collections.abc import Iterable
from contextlib import ExitStack, closing
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path, check_place
from vexpress_trt.runtime.audio_input import opened, sound_planes
from vexpress_trt.runtime.frame import Frame
from vexpress_trt.runtime.muxer import muxer
from vexpress_trt.runtime.summary import Stopwatch

_BT709 = 1  # the code point of primaries, transfer and matrix in H.264's colour description (ITU-T H.273)
# The header comes with the first fragment: written before, it could not say by how much the sound's codec is late, and
# FFmpeg would show the first frame that much longer.
_FRAGMENTED = {"movflags": "frag_keyframe+delay_moov+default_base_moof", "flush_packets": "1"}
NVENC = "h264_nvenc"
_AAC_RATES = (48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)


def check_output_path(path: Path) -> None:
    """Refuse, before any work, what could not be written at the end. Raises UserError."""
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise UserError(f"--output_path {path}: the output is an MP4, let the name end in .mp4")
    check_place(path)


def output_target(path: Path) -> Path | BinaryIO:
    """Where a video goes: the file, or standard output for "-".

    Raises UserError for a file that could not be written at the end, and for a terminal.
    """
    if str(path) != "-":
        check_output_path(path)
        return Path(path)
    if sys.stdout.isatty():
        raise UserError("--output_path - writes a video to standard output: lead it into a file or a player")
    return sys.stdout.buffer


def choose_encoder(wanted: str, width: int, height: int) -> str:
    """The H.264 encoder of a video of this size: `wanted`, or for "auto" the GPU's where it opens, else libx264.

    FFmpeg lists h264_nvenc wherever it was built with it: only opening it shows whether there is a GPU that has it.
    Raises UserError where h264_nvenc is asked for and does not open.
    """
    if wanted == "libx264":
        return wanted
    try:
        context = av.CodecContext.create(NVENC, "w")
        context.width, context.height, context.pix_fmt = width, height, "yuv420p"
        context.time_base = Fraction(1, 30)
        context.open()
    except (av.FFmpegError, ValueError, OSError) as problem:  # ValueError: this FFmpeg does not know it
        if wanted == NVENC:
            raise UserError(
                f"--encoder {NVENC} does not open here ({problem}): it needs an NVIDIA GPU with a video encoder, which "
                "A100 and H100 do not have; leave it out to encode on the CPU"
            ) from None
        return "libx264"
    return NVENC


def encode(frames: Iterable[Frame], writer: "VideoWriter", watch: Stopwatch) -> None:
    """Write frames as they come, until the video is whole; the time that takes is the watch's stage "encode".

    Whatever ends it early also closes the iterator of `frames`, so that nothing more is made.
    """
    with writer, closing(iter(frames)) as coming:
        for frame in coming:
            with watch.stage("encode"):
                writer.write(frame.image)


def _options(encoder: str, crf: int, preset: str, *, streamed: bool) -> dict[str, str]:
    if encoder == NVENC:
        options = {"rc": "vbr", "cq": str(crf + 1), "b": "0", "preset": "p5"}
        return options | ({"tune": "ull", "zerolatency": "1", "delay": "0", "bf": "0"} if streamed else {"tune": "hq"})
    return {"crf": str(crf), "preset": preset} | ({"tune": "zerolatency"} if streamed else {})


class VideoWriter:
    """Encodes frames as they come, with the sound of a file, trimmed to the video's length.

    Use as a context manager. A file appears at its path when the block ends without an exception; its folder is made
    when missing. A stream gets a fragmented MP4, which plays while it is written: half-second fragments, and each
    frame encoded as soon as it is there. Memory is bounded, however long the clip: sound is decoded and encoded just
    ahead of the picture. Raises UserError where the disk is full or not writable, or the sound is not readable.
    """

    def __init__(
        self,
        target: Path | BinaryIO,
        width: int,
        height: int,
        fps: float | Fraction,
        *,
        audio_path: Path,
        frames: int,
        crf: int = 18,
        preset: str = "medium",
        encoder: str = "libx264",
    ) -> None:
        """`frames`: how many will be written; the sound ends with the last one. `crf`, `preset`: x264's own scale;
        `encoder`: what `choose_encoder` gave, with quality near that where it is not x264."""
        self._stream = target if hasattr(target, "write") else None
        self._path = None if self._stream else Path(target)
        self._size = (width, height)
        self._rate = Fraction(fps).limit_denominator(100_000)
        self._audio_path = Path(audio_path)
        self._frames = frames
        self._encoder = encoder
        self._options = _options(encoder, crf, preset, streamed=self._stream is not None)
        if self._stream:
            self._options["g"] = str(max(1, round(self._rate / 2)))
        self._written = 0
        self._reformatter = VideoReformatter()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            media = stack.enter_context(opened(self._audio_path))
            if self._stream:
                output = muxer(_WriteOnly(self._stream), "mp4", _FRAGMENTED)
            else:
                output = muxer(stack.enter_context(atomic_path(self._path)), "mp4", {"movflags": "faststart"})
            self._output = stack.enter_context(output)
            self._video = self._add_video()
            self._sound = _Sound(media, self._audio_path, self._output, self._frames / self._rate)
            self._stack = stack.pop_all()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Encode the next frame, uint8 RGB [H, W, 3]. Raises ValueError for another size."""
        width, height = self._size
        if frame.shape != (height, width, 3):
            raise ValueError(f"expected a frame of shape {(height, width, 3)}, got {frame.shape}")
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"),
            width,
            height,
            "yuv420p",
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        picture.pts = self._written
        picture.time_base = 1 / self._rate
        self._output.mux(self._video.encode(picture))
        self._written += 1
        self._sound.write_until(self._written / self._rate)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._output.mux(self._video.encode(None))
            self._sound.finish()

    def _add_video(self) -> av.VideoStream:
        stream = self._output.add_stream(self._encoder, rate=self._rate, options=self._options)
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / self._rate
        context.color_range = ColorRange.MPEG
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        return stream


class _Sound:
    """A sound file re-encoded to AAC piece by piece: its own rate up to 48 kHz, mono or stereo."""

    def __init__(
        self,
        media: av.container.InputContainer,
        path: Path,
        output: av.container.OutputContainer,
        seconds: Fraction,
    ) -> None:
        source = media.streams.audio[0]
        self._rate = next((rate for rate in _AAC_RATES if rate <= source.rate), _AAC_RATES[-1])
        self._layout = "mono" if source.channels == 1 else "stereo"
        self._output = output
        self._stream = output.add_stream("aac", rate=self._rate, layout=self._layout)
        self._left = round(seconds * self._rate)
        self._position = 0
        self._pieces = sound_planes(media, path, rate=self._rate, layout=self._layout)

    def write_until(self, seconds: Fraction) -> None:
        """Encode what sounds before this time."""
        while self._left > 0 and self._position < seconds * self._rate:
            piece = next(self._pieces, None)
            if piece is None:
                self._left = 0
                return
            piece = piece[:, : self._left]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout=self._layout)
            frame.sample_rate = self._rate
            frame.pts = self._position
            frame.time_base = Fraction(1, self._rate)
            self._output.mux(self._stream.encode(frame))
            self._position += piece.shape[1]
            self._left -= piece.shape[1]

    def finish(self) -> None:
        """Flush the encoder."""
        self._output.mux(self._stream.encode(None))


class _WriteOnly:
    """All that a muxer may do with a stream: it must not believe that it can go back."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        try:
            self._stream.write(data)
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as problem:
            raise UserError(f"the stream takes no more of the video: {problem.strerror.lower()}") from None
        return len(data)
