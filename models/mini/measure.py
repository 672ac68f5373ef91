"""What is measured on frames, drawn or generated alike: how far the mouth is open, where the head is."""

import cv2
import numpy as np

from vexpress_trt.models.mini.features import PARTED
from vexpress_trt.models.mini.head import JAW_DROP, MOUTH_HEIGHT
from vexpress_trt.models.mini.pose import SIZE, HeadFrame, head_frame

_PATCH = 24  # pixels of the aligned patch per eye distance, about as many as the frame has
_HALF_WIDTH, _ABOVE, _BELOW = 0.12, 0.25, 0.45  # the patch around the shut mouth, in eye distances
_MOUTH_FOLLOWS = 0.42  # how far the mouth goes with the nose when the head turns
_CHEEK = np.array([[-0.5, 0.72], [0.5, 0.72]])  # always skin
_LIP, _INSIDE = 0.56, 20.0  # grey of the darkest lip as a share of the skin's, and of the open mouth's inside
_RED, _PALE = 42.0, 20.0  # how much more red than blue there is at least in lips, and in teeth
FACE_WIDTH = 2.3  # of an average face, in eye distances
_SEARCH_PATCH, _SEARCH = 0.42, 6  # half of a patch in eye distances; how far it is searched for, in pixels


def mouth_box(keypoints: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns around the mouth of a head with these key points [3, 2], open or shut."""
    frame = head_frame(keypoints)
    x, y = frame.to_image(np.array([0.0, MOUTH_HEIGHT + 0.12]) + _MOUTH_FOLLOWS * frame.turn)
    half_width, half_height = 0.62 * frame.unit, 0.46 * frame.unit
    return _span(y, half_height), _span(x, half_width)


def eye_box(keypoints: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns around both eyes of a head with these key points [3, 2]."""
    frame = head_frame(keypoints)
    x, y = frame.to_image(np.zeros(2))
    return _span(y, 0.3 * frame.unit), _span(x, 0.85 * frame.unit)


def mouth_opening(image: np.ndarray, keypoints: np.ndarray) -> float:
    """How far the mouth is open, about 0 to 1, read from a frame uint8 [128, 128, 3] with key points [3, 2].

    The mean height of what is dark, or pale as teeth are, in the middle of the mouth, in a patch that is aligned with
    the head, over the height of a fully open mouth. Pixels at the edge count in part; lips and skin do not count.
    """
    frame = head_frame(keypoints)
    rows, columns = round((_ABOVE + _BELOW) * _PATCH), round(2 * _HALF_WIDTH * _PATCH)
    x = (np.arange(columns) + 0.5) / _PATCH - _HALF_WIDTH
    y = (np.arange(rows) + 0.5) / _PATCH - _ABOVE + MOUTH_HEIGHT
    skin = _colours_at(image, frame, _CHEEK[None]).mean(axis=-1).max()
    colours = _colours_at(image, frame, np.dstack(np.meshgrid(x, y)) + _MOUTH_FOLLOWS * frame.turn)
    lip = max(_LIP * skin, _INSIDE + 10)
    dark = (lip - colours.mean(axis=-1)) / (lip - _INSIDE)
    pale = (_RED - (colours[..., 0] - colours[..., 2])) / (_RED - _PALE)
    inside = np.clip(np.maximum(dark, pale), 0, 1)
    return float(inside.sum(axis=0).mean() / _PATCH / (PARTED + JAW_DROP))


def mouth_openings(frames: np.ndarray, track: np.ndarray) -> np.ndarray:
    """`mouth_opening` of each of the frames, uint8 [T, 128, 128, 3] with key points [T, 3, 2]: [T]."""
    return np.array([mouth_opening(*pair) for pair in zip(frames, track, strict=True)])


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's r of two curves [T]; 0 where one of them does not move."""
    if np.std(first) < 1e-6 or np.std(second) < 1e-6:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _colours_at(image: np.ndarray, frame: HeadFrame, points: np.ndarray) -> np.ndarray:
    """Colours float64 [R, C, 3] at points [R, C, 2] of the head."""
    return _sampled(image, frame.to_image(points)).astype(np.float64)


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 images of one shape."""
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float(10 * np.log10(255.0**2 / max(error, 1e-9)))


def mean_psnr(frames: np.ndarray, truth: np.ndarray) -> float:
    """Mean over frames uint8 [T, H, W, 3] of their PSNR in dB."""
    return float(np.mean([psnr(*pair) for pair in zip(frames, truth, strict=True)]))


def mean_mouth_psnr(frames: np.ndarray, truth: np.ndarray, track: np.ndarray) -> float:
    """Mean PSNR in dB of the mouths' boxes of heads with key points [T, 3, 2]."""
    boxes = [mouth_box(points) for points in track]
    return float(np.mean([psnr(a[box], b[box]) for a, b, box in zip(frames, truth, boxes, strict=True)]))


def _span(centre: float, half: float) -> slice:
    low, high = round(centre - half), round(centre + half) + 1
    return slice(min(max(low, 0), SIZE - 1), min(max(high, 1), SIZE))


def keypoint_errors(
    image: np.ndarray, keypoints: np.ndarray, portrait: np.ndarray, portrait_keypoints: np.ndarray
) -> np.ndarray:
    """How far eyes and nose of a frame are from where `keypoints` [3, 2] want them, as shares of the face's width, [3].

    The surroundings of each point in the portrait are turned to the frame's pose and searched for near the point: the
    best normed correlation, to a fraction of a pixel. `image` and `portrait` are uint8 [128, 128, 3].
    """
    frame, source = head_frame(keypoints), head_frame(portrait_keypoints)
    turn = frame.right @ source.right, frame.right[1] * source.right[0] - frame.right[0] * source.right[1]
    grow = frame.unit / source.unit
    rotation = grow * np.array([[turn[0], -turn[1]], [turn[1], turn[0]]])
    half = round(_SEARCH_PATCH * frame.unit)
    return np.array(
        [
            np.hypot(*_displacement(image, wanted, portrait, rotation, known, half)) / (FACE_WIDTH * frame.unit)
            for wanted, known in zip(keypoints, portrait_keypoints, strict=True)
        ]
    )


def mean_keypoint_error(
    frames: np.ndarray, track: np.ndarray, portrait: np.ndarray, portrait_keypoints: np.ndarray
) -> float:
    """Mean of `keypoint_errors` over frames uint8 [T, 128, 128, 3] with key points [T, 3, 2]."""
    known = portrait, portrait_keypoints
    return float(np.mean([keypoint_errors(*pair, *known) for pair in zip(frames, track, strict=True)]))


def _displacement(
    image: np.ndarray, wanted: np.ndarray, portrait: np.ndarray, rotation: np.ndarray, known: np.ndarray, half: int
) -> np.ndarray:
    """By how many pixels what is around `known` in the portrait lies beside `wanted` in the image, [2]."""
    offsets = np.dstack(np.meshgrid(*(np.arange(-half, half + 1),) * 2)).astype(np.float64)
    template = _sampled(portrait, known + offsets @ np.linalg.inv(rotation).T)
    reach = half + _SEARCH
    offsets = np.dstack(np.meshgrid(*(np.arange(-reach, reach + 1),) * 2)).astype(np.float64)
    scores = cv2.matchTemplate(_sampled(image, wanted + offsets), template, cv2.TM_CCOEFF_NORMED)
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    return np.array([_peak(scores[row], column), _peak(scores[:, column], row)]) - _SEARCH


def _sampled(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    at = points.astype(np.float32)
    columns, rows = np.ascontiguousarray(at[..., 0]), np.ascontiguousarray(at[..., 1])
    return cv2.remap(image, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _peak(scores: np.ndarray, index: int) -> float:
    """The position of the maximum of a parabola through three neighbours."""
    if not 0 < index < len(scores) - 1:
        return float(index)
    before, here, after = (float(score) for score in scores[index - 1 : index + 2])
    bend = before - 2 * here + after
    return index + (0.5 * (before - after) / bend if bend < 0 else 0.0)


def flicker(frames: np.ndarray) -> float:
    """How much frames uint8 [T, H, W, 3] differ from the mean of their neighbours, in grey levels."""
    values = frames.astype(np.float64)
    return float(np.abs(values[1:-1] - (values[:-2] + values[2:]) / 2).mean())
