"""From a request to what the networks need: the portrait cropped, the speech decoded, the head's path in pixels."""

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import ModelConfig
from vexpress_trt.runtime import advice
from vexpress_trt.runtime.audio_input import SAMPLE_RATE, Audio, decode_audio, measure
from vexpress_trt.runtime.faces.face import Face
from vexpress_trt.runtime.faces.select import load_detector
from vexpress_trt.runtime.keypoints import crop_track, interpolate_track, resample_track, retarget, share_outside
from vexpress_trt.runtime.portrait import crop_to_aspect, load_portrait, upstream_detector_input, upstream_portrait
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.runtime.tracks import load_track
from vexpress_trt.runtime.windows import WindowPlan

log = logging.getLogger("vexpress")
TRACK_SIZE = (512, 512)  # upstream's tracks count pixels of a frame of this size
MEASURED_SECONDS = 300  # the sound's quality is judged by its first minutes
MOSTLY = 0.5  # a larger share of a track's points off the canvas is a mistake in its coordinates
RIVAL_AREA = 0.5  # a second face of more than this share of the largest one's area makes the portrait ambiguous


@dataclass(frozen=True, eq=False)
class Clip:
    """Everything a generation is made from.

    image: float32 [1, 3, H, W] in [-1, 1]. points: [frames, 3, 2] in output pixels for all frames of `plan`, of which
    the first `length` are kept; the others only fill the last window.
    """

    image: np.ndarray
    audio: Audio
    points: np.ndarray
    plan: WindowPlan
    length: int
    fps: float
    width: int
    height: int


def prepare_clip(request: GenerationRequest, model: ModelConfig) -> Clip:
    """Open the inputs and settle everything that needs none of the bundle's graphs.

    Raises UserError for unusable inputs; logs one line of advice for doubtful ones.
    """
    width, height = request.image_width or model.image_width, request.image_height or model.image_height
    audio = decode_audio(request.audio_path, upstream=request.upstream)
    plan, length, fps = _plan(request, audio, request.context_frames or model.context_frames)
    portrait = (_UpstreamPortrait if request.upstream else _Portrait)(request, width, height)
    points = _head_path(request, portrait, length, fps)
    _advise(request, audio, portrait, points)
    held = np.repeat(points[-1:], plan.frames - length, axis=0)
    return Clip(portrait.tensor, audio, np.concatenate([points, held]), plan, length, fps, width, height)


def _advise(
    request: GenerationRequest, audio: Audio, portrait: "_Portrait | _UpstreamPortrait", points: np.ndarray
) -> None:
    """Log what is doubtful. A face is not looked for only to comment on it."""
    height, width = portrait.original.shape[:2]
    lines = [
        advice.blurred_portrait(portrait.original),
        advice.doubtful_audio(measure(audio.waveform.read(0, MEASURED_SECONDS * SAMPLE_RATE))),
        advice.unused_track(request.strategy, track=request.kps_path is not None),
        advice.unusual_weights(request.reference_attention_weight, request.audio_attention_weight),
        advice.unusual_fps(request.fps),
        advice.long_audio(audio.duration, upstream=request.upstream, save_gpu_memory=request.save_gpu_memory),
    ]
    if portrait.found is not None:
        lines.append(advice.placed_face(portrait.found, width, height))
        lines.append(advice.distant_pose(points, portrait.points, request.strategy))
    for line in filter(None, lines):
        log.warning(line)


def _plan(request: GenerationRequest, audio: Audio, window: int) -> tuple[WindowPlan, int, float]:
    """The windows, the number of frames and the output's frame rate."""
    if request.context_overlap >= window:
        raise UserError(
            f"--context_overlap {request.context_overlap}: must be smaller than the window of {window} frames."
        )
    if request.upstream:
        plan = WindowPlan.tiled(audio.duration, request.fps, window, request.context_overlap)
        return plan, plan.frames, plan.frames / audio.duration
    length = round(audio.duration * request.fps)
    if length < 1:
        raise UserError(
            f"{request.audio_path} lasts {audio.duration * 1000:.0f} ms, shorter than one frame at {request.fps:g} "
            "frames/s: give longer speech."
        )
    return WindowPlan.covering(length, window, request.context_overlap), length, request.fps


class _Portrait:
    """The portrait cropped to the output's shape; a face is looked for only when something needs it."""

    def __init__(self, request: GenerationRequest, width: int, height: int) -> None:
        self.request = request
        self.size = (width, height)
        self.found: Face | None = None
        self.original = load_portrait(request.reference_image_path, minimum=self.size)
        same_shape = self.original.shape[1] * height == self.original.shape[0] * width
        centre = None if same_shape or request.crop == "center" else self._face.points.mean(axis=0)
        self.image, self.crop = crop_to_aspect(self.original, width, height, centre)

    @cached_property
    def tensor(self) -> np.ndarray:
        """float32 [1, 3, H, W] in [-1, 1]."""
        return self.image.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(127.5) - np.float32(1.0)

    @cached_property
    def points(self) -> np.ndarray:
        """The face's key points in output pixels, [3, 2]."""
        return self._place(self._face.points, self._original_size)

    def place(self, points: np.ndarray, track_size: tuple[int, int]) -> np.ndarray:
        """A track's points in output pixels: its frame shows what the whole portrait shows.

        Raises UserError when most of them fall outside the picture.
        """
        placed = self._place(points, track_size)
        outside = share_outside(placed, *self.size)
        if outside > MOSTLY:
            raise UserError(
                f"{self.request.kps_path}: {outside:.0%} of the key points lie outside the picture of "
                f"{self.size[0]}x{self.size[1]}; they were taken as pixels of a {track_size[0]}x{track_size[1]} frame, "
                "give its true size with --kps_size W,H."
            )
        return placed

    @property
    def _original_size(self) -> tuple[int, int]:
        height, width = self.original.shape[:2]
        return width, height

    def _place(self, points: np.ndarray, frame_size: tuple[int, int]) -> np.ndarray:
        return crop_track(points, frame_size, self._original_size, self.crop, self.size)

    @cached_property
    def _face(self) -> Face:
        self.found = only_face(_detect(self.request, self.original), self.request)
        return self.found


class _UpstreamPortrait:
    """The portrait squashed to the output's size as upstream does; track points are output pixels already."""

    found: Face | None = None  # where it is in the squashed picture says nothing about the original

    def __init__(self, request: GenerationRequest, width: int, height: int) -> None:
        self.request = request
        self.size = (width, height)
        self.original = load_portrait(request.reference_image_path, upstream=True)
        self.tensor = upstream_portrait(self.original, width, height)

    @cached_property
    def points(self) -> np.ndarray:
        """The first detected face's key points in output pixels, [3, 2]."""
        faces = _detect(self.request, upstream_detector_input(self.original, *self.size))
        return only_face(faces[:1], self.request).points

    def place(self, points: np.ndarray, track_size: tuple[int, int]) -> np.ndarray:
        """The points as they are."""
        return points


def _detect(request: GenerationRequest, image: np.ndarray) -> list[Face]:
    return load_detector(request.detector, request.face_model_dir).detect(image)


def _head_path(
    request: GenerationRequest, portrait: _Portrait | _UpstreamPortrait, length: int, fps: float
) -> np.ndarray:
    """Key points of every frame in output pixels, [length, 3, 2]."""
    track = None if request.kps_path is None else load_track(request.kps_path)
    if request.strategy == "fix_face":
        return np.repeat(portrait.points[None], length, axis=0)
    assert track is not None, "the request is validated"
    if request.upstream or track.fps is None:
        points = interpolate_track(track.points, length)
    else:
        points = resample_track(track.points, length, fps, track.fps)
    points = portrait.place(points, request.track_size or track.size or TRACK_SIZE)
    if request.strategy == "no_retarget":
        return points
    return retarget(points, portrait.points, offset=request.strategy == "offset_retarget", upstream=request.upstream)


def only_face(faces: list[Face], request: GenerationRequest) -> Face:
    """The one face a portrait is of. Raises UserError when there is none, or several that could be meant."""
    if not faces:
        raise UserError(
            f"{request.reference_image_path}: no face found, and {request.strategy} or the crop needs one; "
            "give a clear frontal portrait, or a track with --retarget_strategy no_retarget --crop center."
        )
    areas = [float(np.prod(face.box[2:] - face.box[:2])) for face in faces]
    if len(faces) > 1:
        if areas[1] > RIVAL_AREA * areas[0]:
            raise UserError(
                f"{request.reference_image_path}: {len(faces)} faces of similar size; crop the portrait to one person."
            )
        log.warning(f"{request.reference_image_path}: {len(faces)} faces found, the largest is taken")
    return faces[0]
