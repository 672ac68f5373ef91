"""Key points between track and network: time, coordinates, retargeting to a portrait, and the drawn guide image.

Points are arrays [T, 3, 2] or [3, 2] in the order left eye, right eye, nose, as (x, y) in pixels.
"""

import math

import cv2
import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.resampling import stretch_positions, taps_at

LEFT_EYE, RIGHT_EYE, NOSE = 0, 1, 2

_EYE_AND_NOSE_COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
_DISC_RADIUS = 4
_LIMB_HALF_WIDTH = 4
_LIMB_SHADE = 0.6
# OpenCV draws in 16.16 fixed point: beyond this a limb cannot be drawn, and could hardly be seen.
_FARTHEST_PIXEL = 16_000


def interpolate_track(points: np.ndarray, length: int) -> np.ndarray:
    """Upstream's fit of a track [T, 3, 2] to a clip: cut to `length` frames, or stretched linearly when shorter.

    Returns [length, 3, 2] in the dtype of `points` (golden README, helpers/kps_interpolate).
    """
    points = points[:length]
    if len(points) == length:
        return points.copy()
    return taps_at(stretch_positions(len(points), length, points.dtype.type), len(points)).apply(points)


def resample_track(points: np.ndarray, length: int, fps: float, track_fps: float | None = None) -> np.ndarray:
    """A track [T, 3, 2] at the `length` frames of a clip of `fps` frames per second, [length, 3, 2] in the same dtype.

    With `track_fps` frames are taken by time: a longer track is cut and a shorter one holds its last points. Without it
    the track spans the whole clip, whatever their lengths.
    """
    if track_fps is None:
        positions = stretch_positions(len(points), length, np.float64)
    else:
        positions = (np.arange(length) + 0.5) * (track_fps / fps) - 0.5
    return taps_at(positions, len(points)).apply(points).astype(points.dtype)


def crop_track(
    points: np.ndarray,
    from_size: tuple[int, int],
    image_size: tuple[int, int],
    crop: tuple[float, float, float, float],
    to_size: tuple[int, int],
) -> np.ndarray:
    """Points moved with a picture that is cropped and resized; the dtype is kept.

    Points are pixels of a frame of `from_size` that shows what the picture of `image_size` shows; `crop` is the part
    that is kept, (left, top, width, height) in the picture's pixels, and becomes `to_size`. Sizes are (width, height).
    """
    left, top, width, height = crop
    in_image = points * np.array([image_size[0] / from_size[0], image_size[1] / from_size[1]])
    return ((in_image - (left, top)) * (to_size[0] / width, to_size[1] / height)).astype(points.dtype)


def share_outside(points: np.ndarray, width: int, height: int) -> float:
    """The share (0..1) of points off a canvas of `width` x `height` pixels; what is not finite counts as off."""
    x, y = points[..., 0], points[..., 1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return 1.0 - float(inside.mean())


def retarget(points: np.ndarray, reference: np.ndarray, *, offset: bool, upstream: bool = False) -> np.ndarray:
    """Move a track [T, 3, 2] onto another face, whose points are `reference` [3, 2].

    The track is scaled per axis so that the frame posed most like the reference gets its size. `offset` False
    (upstream's "naive") shifts it so that the nose of frame 0 lies on the reference's nose. `offset` True keeps the
    reference's points and subtracts half of the scaled movement of the nose since frame 0. `upstream` repeats
    upstream's choice of the frame (see `upstream_pose_frame`) instead of the truly closest one.

    Works in the dtype of `points` (golden README, section 4, "Retarget"). Raises UserError when a face is degenerate.
    """
    reference = reference.astype(points.dtype)
    choose = upstream_pose_frame if upstream else closest_pose_frame
    width, height = face_size(points[choose(points, reference)])
    target_width, target_height = face_size(reference)
    if not (width > 0 and height > 0 and target_width > 0 and target_height > 0):
        raise UserError(
            "the track or the portrait has key points that lie on one another, so the face has no size to retarget by; "
            "use --retarget_strategy no_retarget or another portrait"
        )
    scaled = points * np.array([target_width / width, target_height / height], dtype=points.dtype)
    if offset:
        movement = scaled[:, NOSE:] - scaled[:1, NOSE:]
        return reference - points.dtype.type(0.5) * movement
    return scaled - scaled[0, NOSE] + reference[NOSE]


def closest_pose_frame(points: np.ndarray, reference: np.ndarray) -> int:
    """The frame of [T, 3, 2] whose left/right eye-to-nose ratio is nearest to that of `reference` [3, 2]."""
    difference = np.abs(_eye_nose_ratio(points) - _eye_nose_ratio(reference))
    return int(np.argmin(np.where(np.isfinite(difference), difference, np.inf)))


def upstream_pose_frame(points: np.ndarray, reference: np.ndarray) -> int:
    """The frame that upstream takes for the closest: its threshold is the last taken frame's ratio, not its distance.

    Often this is the last frame (golden README, section 4, "Retarget").
    """
    ratios = _eye_nose_ratio(points)
    reference_ratio = _eye_nose_ratio(reference)
    chosen, threshold = 0, np.inf
    for frame, ratio in enumerate(ratios):
        if abs(ratio - reference_ratio) < threshold:
            chosen, threshold = frame, ratio
    return chosen


def face_size(points: np.ndarray) -> tuple[float, float]:
    """The eyes' distance and the nose's distance to the segment between the eyes, for one frame [3, 2], in pixels."""
    left, right, nose = points
    eyes = right - left
    width = np.sqrt((eyes**2).sum())
    if width == 0:
        return width, _distance(left, nose)
    along = np.clip(((nose - left) * eyes).sum() / width**2, 0, 1)
    return width, _distance(left + along * eyes, nose)


def _eye_nose_ratio(points: np.ndarray) -> np.ndarray:
    left = _distance(points[..., LEFT_EYE, :], points[..., NOSE, :])
    right = _distance(points[..., RIGHT_EYE, :], points[..., NOSE, :])
    with np.errstate(divide="ignore", invalid="ignore"):
        return left / right


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(((a - b) ** 2).sum(axis=-1))


def draw_keypoints(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """The guide image of one frame: uint8 RGB [height, width, 3], black, bit for bit as upstream draws it.

    `points` float [3, 2] in pixels of the image; sizes do not depend on the resolution (golden README, section 4,
    "Drawing"). What lies off the canvas is clipped; a point that is not finite, or so far away that OpenCV cannot count
    to it, is left out with its limb.
    """
    canvas = np.zeros((height, width, 3), np.uint8)
    drawable = (np.abs(points) <= _FARTHEST_PIXEL).all(axis=1)
    for eye in (LEFT_EYE, RIGHT_EYE):
        if drawable[eye] and drawable[NOSE]:
            shade = [int(channel * _LIMB_SHADE) for channel in _EYE_AND_NOSE_COLOURS[eye]]
            cv2.fillConvexPoly(canvas, _limb(points[eye], points[NOSE]), shade)
    for point, colour in zip(points[drawable], np.array(_EYE_AND_NOSE_COLOURS)[drawable], strict=True):
        cv2.circle(canvas, (int(point[0]), int(point[1])), _DISC_RADIUS, colour.tolist(), thickness=-1)
    return canvas


def _limb(eye: np.ndarray, nose: np.ndarray) -> np.ndarray:
    """The polygon of a limb, int32 [N, 2]: an ellipse between two points; centre, half-length and angle truncated."""
    x, y = eye - nose
    centre = np.stack([eye, nose]).mean(axis=0)
    half_length = int((x**2 + y**2) ** 0.5 / 2)
    angle = int(math.degrees(math.atan2(y, x)))
    return cv2.ellipse2Poly((int(centre[0]), int(centre[1])), (half_length, _LIMB_HALF_WIDTH), angle, 0, 360, 1)
