"""`vexpress extract`: the key-point track and the sound of a video.

Every frame gives three points in pixels of a 512x512 frame, to which upstream squeezes the picture whatever its shape.
"""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from time import perf_counter
from typing import Any

import av
import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path
from vexpress_trt.runtime.extract_audio import AUDIO_SUFFIXES, write_audio
from vexpress_trt.runtime.faces.face import Detector
from vexpress_trt.runtime.faces.follow import FaceFollower, Gap, fill_gaps, find_gaps
from vexpress_trt.runtime.faces.select import load_detector
from vexpress_trt.runtime.tracks import save_track

TRACK_SIDE = 512
TRACK_SUFFIXES = (".pth", ".npy")
MAX_GAP_SECONDS = 0.5
MAX_SIDE = 8192
MAX_FRAMES = 400_000
_PICTURES = ("image2", "_pipe")  # demuxers of still pictures

_log = logging.getLogger("vexpress")


@dataclass(frozen=True, eq=False)
class ExtractResult:
    """What was found in a video.

    points: float32 [T, 3, 2], per frame the eye on the image's left, the eye on the right and the nose as x, y in
    pixels of a 512x512 frame. fps: frames per second of the video. gaps: where no face was found and points were filled
    in. faces: the largest number of faces of a comparable size in one frame. jumps: frames in which the face was far
    from where it had been. seconds: wall-clock time.
    """

    points: np.ndarray = field(repr=False)
    fps: float
    kps_path: Path
    audio_path: Path | None
    detector: str
    gaps: tuple[Gap, ...]
    faces: int
    jumps: tuple[int, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON; the points are in the track."""
        return {
            "kps_sequence_save_path": str(self.kps_path),
            "audio_save_path": None if self.audio_path is None else str(self.audio_path),
            "frames": len(self.points),
            "fps": self.fps,
            "width": TRACK_SIDE,
            "height": TRACK_SIDE,
            "detector": self.detector,
            "gaps": [[gap.first, gap.last] for gap in self.gaps],
            "faces": self.faces,
            "jumps": list(self.jumps),
            "seconds": self.seconds,
        }

    def as_text(self) -> str:
        """A few lines for a person."""
        frames = len(self.points)
        lines = [
            f"{frames} frames at {self.fps:g} frames/s ({frames / self.fps:.2f} s), detector {self.detector}, "
            f"{self.seconds:.1f} s ({self.seconds / frames * 1000:.0f} ms per frame)",
            f"wrote {self.kps_path}",
        ]
        if self.audio_path is not None:
            lines.append(f"wrote {self.audio_path}")
        return "\n".join(lines)


def extract(
    video_path: Path,
    kps_path: Path,
    audio_path: Path | None = None,
    *,
    detector: str | Detector = "auto",
    face_model_dir: Path | None = None,
    on_progress: Callable[[int, int | None], None] | None = None,
) -> ExtractResult:
    """Follow one face through a video and write its key points, and on request the video's sound.

    The track is written as `.pth` (upstream's form) or `.npy` with a sidecar, the sound as `.wav`, `.mp3`, `.m4a` or
    `.flac`, by suffix. In the first frame with a face the largest one near the middle is taken, then always the
    nearest. Up to half a second without a face is filled in. `detector` is a name for `load_detector` or a detector.
    `on_progress` gets the frames done and, where the video says, their number.

    Raises UserError where the video cannot be read or shows no face for too long, where sound is asked for and there is
    none, and where an output cannot be written; no output is touched then.
    """
    began = perf_counter()
    video_path, kps_path = Path(video_path), Path(kps_path)
    audio_path = None if audio_path is None else Path(audio_path)
    _check_outputs(video_path, kps_path, audio_path)
    with _open(video_path) as media:
        stream = _video_stream(media, video_path)
        if audio_path is not None and not media.streams.audio:
            raise UserError(f"{video_path} has no sound: leave out --audio_save_path or choose another video")
        detector = load_detector(detector, face_model_dir) if isinstance(detector, str) else detector
        fps = float(stream.average_rate or stream.guessed_rate or Fraction(30))
        follower = FaceFollower(detector, check_every=round(fps))
        found: list[np.ndarray | None] = []
        for image in _frames(media, stream, video_path):
            face = follower.find(image)
            height, width = image.shape[:2]
            found.append(None if face is None else face.scaled(TRACK_SIDE / width, TRACK_SIDE / height).points)
            if on_progress is not None:
                on_progress(len(found), max(stream.frames, len(found)) or None)
    points, gaps = _without_gaps(found, fps, video_path)
    if audio_path is None:
        save_track(kps_path, points, (TRACK_SIDE, TRACK_SIDE), fps)
    else:
        with atomic_path(audio_path) as temporary:
            write_audio(video_path, temporary, audio_path.suffix.lower())
            save_track(kps_path, points, (TRACK_SIDE, TRACK_SIDE), fps)
    _warn(video_path, follower, gaps, len(found))
    return ExtractResult(
        points=points,
        fps=fps,
        kps_path=kps_path,
        audio_path=audio_path,
        detector=detector.name,
        gaps=tuple(gaps),
        faces=follower.most_faces,
        jumps=tuple(follower.jumps),
        seconds=perf_counter() - began,
    )


def _check_outputs(video_path: Path, kps_path: Path, audio_path: Path | None) -> None:
    """Refuse what cannot be written before minutes are spent on it."""
    if kps_path.suffix.lower() not in TRACK_SUFFIXES:
        raise UserError(f"--kps_sequence_save_path {kps_path}: a track is written as .pth or .npy, name one of them")
    if audio_path is not None and audio_path.suffix.lower() not in AUDIO_SUFFIXES:
        known = ", ".join(AUDIO_SUFFIXES)
        raise UserError(f"--audio_save_path {audio_path}: sound is written as {known}, name one of them")
    for path in (kps_path, audio_path):
        if path is None:
            continue
        if not path.parent.is_dir():
            raise UserError(f"cannot write {path}: there is no folder {path.parent}; create it or choose another path")
        if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
            raise UserError(
                f"cannot write {path}: it is a folder or its folder may not be written; choose another path"
            )
        if path.exists() and video_path.exists() and path.samefile(video_path):
            raise UserError(f"cannot write {path}: it is the video that is read; choose another path")


def _open(path: Path) -> av.container.InputContainer:
    if not path.is_file():
        raise UserError(f"--video_path {path}: there is no such file; check the path")
    if path.stat().st_size == 0:
        raise UserError(f"--video_path {path}: the file is empty; choose another video")
    try:
        return av.open(str(path), options={"protocol_whitelist": "file"})
    except PermissionError as problem:
        raise UserError(f"--video_path {path}: the file may not be read; check its permissions") from problem
    except av.FFmpegError as problem:
        raise UserError(
            f"--video_path {path}: not a video that can be read ({problem.strerror}); convert it to MP4"
        ) from problem


def _video_stream(media: av.container.InputContainer, path: Path) -> av.VideoStream:
    streams = [stream for stream in media.streams.video if not stream.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise UserError(f"--video_path {path}: there is no video stream in it; choose a video")
    if any(mark in media.format.name for mark in _PICTURES):
        raise UserError(f"--video_path {path}: a still picture, not a video; choose a video")
    stream = streams[0]
    if max(stream.width, stream.height) > MAX_SIDE:
        raise UserError(
            f"--video_path {path}: {stream.width}x{stream.height} is over {MAX_SIDE} pixels a side; scale it down"
        )
    stream.thread_type = "AUTO"
    return stream


def _frames(media: av.container.InputContainer, stream: av.VideoStream, path: Path) -> Iterator[np.ndarray]:
    """All frames upright, uint8 RGB [H, W, 3], undistorted, the short side at most 512 pixels.

    Faces are sought in the picture as it is and their points squeezed to 512x512 afterwards: squeezed faces are found
    less well.
    """
    count = 0
    try:
        for frame in media.decode(stream):
            count += 1
            if count > MAX_FRAMES:
                raise UserError(f"--video_path {path}: more than {MAX_FRAMES} frames; cut it")
            scale = min(1.0, TRACK_SIDE / min(frame.width, frame.height))
            width, height = round(frame.width * scale), round(frame.height * scale)
            image = frame.to_ndarray(format="rgb24", width=width, height=height)
            yield np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))
    except av.FFmpegError as problem:
        raise UserError(
            f"--video_path {path}: damaged after frame {count} ({problem.strerror}); repair or cut it"
        ) from problem
    if count == 0:
        raise UserError(f"--video_path {path}: there is no frame in it; choose another video")


def _without_gaps(found: list[np.ndarray | None], fps: float, path: Path) -> tuple[np.ndarray, list[Gap]]:
    gaps = find_gaps(found)
    if sum(map(len, gaps)) == len(found):
        raise UserError(f"{path}: no face in any of its {len(found)} frames; choose a video that shows a face")
    limit = max(1, round(MAX_GAP_SECONDS * fps))
    long = [str(gap) for gap in gaps if len(gap) > limit]
    if long:
        raise UserError(
            f"{path}: no face in frames {_listed(long)}; at most {limit} in a row ({MAX_GAP_SECONDS:g} s) can be "
            "filled in, cut these frames out or choose another video"
        )
    return fill_gaps(found), gaps


def _warn(path: Path, follower: FaceFollower, gaps: list[Gap], frames: int) -> None:
    if follower.most_faces > 1:
        _log.warning(
            f"{path} shows up to {follower.most_faces} faces: followed the one that is largest and nearest the middle "
            "at the start"
        )
    if gaps:
        _log.warning(
            f"{path}: no face in {sum(map(len, gaps))} of {frames} frames ({_listed(gaps)}): their points are filled in"
        )
    if follower.jumps:
        _log.warning(
            f"{path}: the face jumps at frame {_listed(follower.jumps)} (a cut?): check that it is the same person"
        )


def _listed(items: list[Any] | tuple[Any, ...], most: int = 8) -> str:
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
