"""The picture of a video, frame by frame and upright, and how fast it runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vexpress_trt.engines.errors import UserError

MAX_SIDE = 8192
MAX_FRAMES = 400_000
TIME_ROUNDING = 0.0015  # seconds; Matroska keeps milliseconds
# What a file holds decides how it is read, not its suffix: without these a playlist could fetch other files. Sound and
# still pictures are let in to be refused by what they are.
_FORMATS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "mxf", "nut", "ivf", "gif", "h264",
    "hevc", "m4v", "wav", "mp3", "aac", "flac", "image2", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe",
)  # fmt: skip
_OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": ",".join(_FORMATS)}
_STILL = ("image2", "_pipe")


@contextmanager
def opened_video(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A video opened for decoding, with its picture stream. Raises UserError where it cannot be read or has none."""
    if not os.path.isfile(path):  # unlike Path's, also False for a name too long
        raise UserError(f"the video {path} does not exist or is not a file: check --video_path")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: choose another video")
    try:
        media = av.open(f"file:{path}", options=dict(_OPEN_OPTIONS), metadata_errors="replace")
    except (av.FFmpegError, OSError) as problem:
        raise UserError(f"{path} is not readable as video ({problem.strerror}): convert it or choose another") from None
    with media:
        yield media, _picture_stream(media, path)


def upright_frames(
    media: av.container.InputContainer, stream: av.VideoStream, path: Path, short_side: int
) -> Iterator[tuple[np.ndarray, float | None]]:
    """Each frame as uint8 RGB [H, W, 3], turned as its rotation says, and its time in seconds where it has one.

    Frames with a longer short side are reduced to `short_side` pixels in their own shape. Raises UserError where the
    video is damaged, has no frame, or has more than `MAX_FRAMES`.
    """
    count = 0
    try:
        for frame in media.decode(stream):
            count += 1
            if count > MAX_FRAMES:
                raise UserError(f"{path} has more than {MAX_FRAMES} frames: cut it first")
            scale = min(1.0, short_side / min(frame.width, frame.height))
            width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
            image = frame.to_ndarray(format="rgb24", width=width, height=height)
            yield np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90))), frame.time
    except av.FFmpegError as problem:
        raise UserError(f"{path} is damaged after frame {count} ({problem.strerror}): repair or cut it") from problem
    if count == 0:
        raise UserError(f"{path} has no frame in it: choose another video")


def frame_rate(stream: av.VideoStream, times: list[float | None]) -> float:
    """Frames per second over the times of all frames.

    What the file states counts where frames have no usable times, or where both agree within the rounding of times.
    """
    stated = float(stream.average_rate or stream.guessed_rate or 30)
    known = [time for time in times if time is not None]
    if len(known) < len(times) or len(known) < 2 or known[-1] <= known[0]:
        return stated
    span = known[-1] - known[0]
    if abs((len(known) - 1) / stated - span) <= TIME_ROUNDING:
        return stated
    return float(Fraction((len(known) - 1) / span).limit_denominator(1001))


def _picture_stream(media: av.container.InputContainer, path: Path) -> av.VideoStream:
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in media.streams.video if not stream.disposition & cover]
    if not streams:
        raise UserError(f"{path} has no video stream: choose a video")
    if any(mark in media.format.name for mark in _STILL):
        raise UserError(f"{path} is a still picture: choose a video")
    stream = streams[0]
    if stream.codec_context is None:
        raise UserError(f"{path} has a picture in an unknown codec: convert it to MP4")
    if max(stream.width, stream.height) > MAX_SIDE:
        raise UserError(
            f"{path} has {stream.width}x{stream.height} pixels, over {MAX_SIDE} a side: scale it down first"
        )
    stream.thread_type = "AUTO"
    return stream
