"""`vexpress extract`: the key-point track and the sound of a video.

Every frame gives three points in pixels of a 512x512 frame, to which upstream squeezes the picture whatever its shape.
Faces are sought in the picture as it is, for squeezed ones are found less well; it is their points that are squeezed.
"""

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path, check_place
from vexpress_trt.runtime.extract_audio import AUDIO_SUFFIXES, require_sound, write_audio
from vexpress_trt.runtime.extract_video import frame_rate, opened_video, upright_frames
from vexpress_trt.runtime.faces.face import Detector
from vexpress_trt.runtime.faces.follow import FaceFollower, Gap, fill_gaps, find_gaps
from vexpress_trt.runtime.faces.select import load_detector
from vexpress_trt.runtime.tracks import save_track, sidecar

TRACK_SIDE = 512
TRACK_SUFFIXES = (".pth", ".npy")
MAX_GAP_SECONDS = 0.5

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

    @property
    def _beside(self) -> str:
        """What a track that is only an array has with it."""
        if self.kps_path.suffix.lower() != ".npy":
            return ""
        return f", its frame's size and rate in {sidecar(self.kps_path).name}"

    def as_text(self) -> str:
        """A few lines for a person."""
        frames = len(self.points)
        lines = [
            f"{frames} frames at {self.fps:g} frames/s ({frames / self.fps:.2f} s), detector {self.detector}, "
            f"{self.seconds:.1f} s ({self.seconds / frames * 1000:.0f} ms per frame)",
            f"wrote {self.kps_path}" + self._beside,
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
    with opened_video(video_path) as (media, stream):
        if audio_path is not None:
            require_sound(media, video_path)
        detector = load_detector(detector, face_model_dir) if isinstance(detector, str) else detector
        follower = FaceFollower(detector)
        found: list[np.ndarray | None] = []
        times: list[float | None] = []
        for image, time in upright_frames(media, stream, video_path, TRACK_SIDE):
            face = follower.find(image)
            height, width = image.shape[:2]
            found.append(None if face is None else face.scaled(TRACK_SIDE / width, TRACK_SIDE / height).points)
            times.append(time)
            if on_progress is not None:
                on_progress(len(found), max(stream.frames, len(found)) if stream.frames else None)
        fps = frame_rate(stream, times)
    points, gaps = _without_gaps(found, fps, video_path)
    _write(video_path, kps_path, audio_path, points, fps)
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
        raise UserError(f"--kps_sequence_save_path {kps_path}: a track is a .pth or .npy file, name one of them")
    if audio_path is not None and audio_path.suffix.lower() not in AUDIO_SUFFIXES:
        known = ", ".join(AUDIO_SUFFIXES)
        raise UserError(f"--audio_save_path {audio_path}: sound is written as {known}, name one of them")
    for path in filter(None, (kps_path, audio_path)):
        check_place(path)
        if path.exists() and os.path.exists(video_path) and path.samefile(video_path):
            raise UserError(f"cannot write {path}: it is the video that is read; choose another path")


def _write(video_path: Path, kps_path: Path, audio_path: Path | None, points: np.ndarray, fps: float) -> None:
    """Both files, or none of them."""
    with ExitStack() as stack:
        if audio_path is not None:
            temporary = stack.enter_context(atomic_path(audio_path))
            write_audio(video_path, temporary, audio_path.suffix.lower())
        save_track(kps_path, points, (TRACK_SIDE, TRACK_SIDE), fps)


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
