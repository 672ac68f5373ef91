"""The drawn world: `render` makes a frame from who it is, where the head is, and what mouth and lids do.

A frame is layered: wall, hair behind the head, neck and clothes, the head. The head's layer is painted once per
identity in the head's own coordinates; each frame paints mouth and eyes into it and moves it to its place. Turning the
head shifts its points against each other by how far in front of the eyes they are.
"""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from vexpress_trt.models.mini.backdrop import BODY, paint_backdrop
from vexpress_trt.models.mini.features import Eyes, Mouth, draw_mouth
from vexpress_trt.models.mini.head import HEAD, JAW_DROP, Head, paint_head
from vexpress_trt.models.mini.identity import Identity
from vexpress_trt.models.mini.paint import over
from vexpress_trt.models.mini.pose import SIZE, HeadFrame, head_frame

_FINE = 2  # frames are drawn this many times larger and averaged down
_BODY_FOLLOWS = np.array([0.45, 0.55])  # the share of the head's place, sideways and up, that the body follows
_BODY_REST = np.array([64.0, 55.0])  # where the head is when the body is in the middle, in pixels


def render(who: Identity, keypoints: np.ndarray, mouth: Mouth, blink: float = 0.0) -> np.ndarray:
    """One frame, uint8 RGB [128, 128, 3].

    `keypoints` [3, 2]: eye on the image's left, eye on its right, tip of the nose, in pixels; `blink` from 0 (eyes
    open) to 1 (shut). Raises ValueError for eyes that lie on one another.
    """
    frame = head_frame(keypoints)
    person = _person(who)
    front = person.head.front.copy()
    person.eyes.draw(front, blink)
    draw_mouth(front, who, mouth)
    columns, rows = _head_positions(frame, person.head, mouth.opening)
    image = over(person.backdrop.wall, cv2.remap(person.head.back, columns, rows, cv2.INTER_LINEAR))
    image = over(image, _place_body(frame, person.backdrop.body))
    image = over(image, cv2.remap(front, columns, rows, cv2.INTER_LINEAR))
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def render_clip(who: Identity, track: np.ndarray, mouths: Sequence[Mouth], blinks: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, 128, 128, 3] for key points [T, 3, 2], T mouths and lids [T]."""
    return np.stack([render(who, *state) for state in zip(track, mouths, blinks, strict=True)])


class _Person:
    """What is painted once per identity."""

    def __init__(self, who: Identity) -> None:
        self.head = paint_head(who)
        self.eyes = Eyes(who)
        self.backdrop = paint_backdrop(who, SIZE * _FINE)


@lru_cache(maxsize=64)
def _person(who: Identity) -> _Person:
    return _Person(who)


def _head_positions(frame: HeadFrame, head: Head, opening: float) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel of the large image lies on the canvas `HEAD`: columns and rows, float32 [H, W] each."""
    centres = (np.arange(SIZE * _FINE, dtype=np.float32) + 0.5) / _FINE - 0.5
    right, down = (frame.right / frame.unit).astype(np.float32), (frame.down / frame.unit).astype(np.float32)
    across, along = centres - np.float32(frame.origin[0]), (centres - np.float32(frame.origin[1]))[:, None]
    columns = (across * right[0] + along * right[1] - HEAD.left) * HEAD.unit - 0.5
    rows = (across * down[0] + along * down[1] - HEAD.top) * HEAD.unit - 0.5
    turn = (frame.turn * HEAD.unit).astype(np.float32)
    # The relief is looked up around the turned nose, so that the tip lands exactly on its key point.
    shift = _look_up(head.relief, columns - turn[0], rows - turn[1])
    columns, rows = columns - turn[0] * shift, rows - turn[1] * shift
    drop = np.float32(JAW_DROP * HEAD.unit * opening)
    return columns, rows - drop * _look_up(head.jaw, columns, rows)


def _look_up(field: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return cv2.remap(field, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _place_body(frame: HeadFrame, body: np.ndarray) -> np.ndarray:
    """The body's layer on the large image. It stays upright and follows part of the head's movement."""
    anchor = _BODY_REST + _BODY_FOLLOWS * (frame.origin - _BODY_REST)
    scale = frame.unit * _FINE / BODY.unit
    # Canvas pixel (0, 0) is half a pixel inside the canvas's corner; so is the image's.
    corner = (anchor + 0.5) * _FINE - 0.5 + frame.unit * _FINE * np.array([BODY.left, BODY.top]) + scale / 2
    matrix = np.array([[scale, 0, corner[0]], [0, scale, corner[1]]])
    return cv2.warpAffine(body, matrix, (SIZE * _FINE, SIZE * _FINE), flags=cv2.INTER_LINEAR)
