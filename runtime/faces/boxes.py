"""Boxes as float32 [N, 4] arrays of x0, y0, x1, y1 in pixels: what a detection cascade does with them."""

import cv2
import numpy as np


def square(boxes: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Squares [N, 4] with the centres of `boxes` and `scale` times their longer sides."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) * (scale / 2)
    return np.concatenate([centre - half, centre + half], axis=1)


def shifted(boxes: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Boxes whose edges are moved by `shifts` [N, 4], given in parts of each box's width and height."""
    size = boxes[:, 2:] - boxes[:, :2]
    return boxes + shifts * np.tile(size, (1, 2))


def distinct(boxes: np.ndarray, scores: np.ndarray, overlap: float, *, of_smaller: bool = False) -> np.ndarray:
    """Indices of the boxes that non-maximum suppression leaves, best score first.

    A box falls when it overlaps a better one by more than `overlap`, measured as intersection over union or, with
    `of_smaller`, as intersection over the smaller of the two areas (which drops a box inside another).
    """
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        corner = np.maximum(boxes[best, :2], boxes[rest, :2])
        shared = np.prod(np.clip(np.minimum(boxes[best, 2:], boxes[rest, 2:]) - corner, 0, None), axis=1)
        whole = np.minimum(area[best], area[rest]) if of_smaller else area[best] + area[rest] - shared
        order = rest[shared <= overlap * whole]
    return np.array(kept, np.intp)


def crops(image: np.ndarray, boxes: np.ndarray, side: int) -> np.ndarray:
    """The content of boxes with whole-number corners, resized: uint8 [N, side, side, 3]; black beyond the image."""
    return np.stack([_crop(image, *box, side) for box in boxes.astype(int)])


def _crop(image: np.ndarray, x0: int, y0: int, x1: int, y1: int, side: int) -> np.ndarray:
    x1, y1 = max(x1, x0 + 1), max(y1, y0 + 1)
    height, width = image.shape[:2]
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if (left, top, right, bottom) == (x0, y0, x1, y1):
        content = image[y0:y1, x0:x1]
    else:
        content = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)
        if right > left and bottom > top:
            content[top - y0 : bottom - y0, left - x0 : right - x0] = image[top:bottom, left:right]
    return resized(content, side, side)


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """`image` resized: by area where it shrinks, so that nothing is skipped, linearly where it grows."""
    shrinks = width < image.shape[1] and height < image.shape[0]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
