"""The part of a face that moves within it: mouth and eyes, painted into the head's layer for every frame."""

from dataclasses import dataclass

import numpy as np

from vexpress_trt.models.mini.head import HEAD, MOUTH_HEIGHT
from vexpress_trt.models.mini.identity import Identity
from vexpress_trt.models.mini.paint import Canvas, blend, ellipse, fill, spot, stroke

PARTED = 0.27  # the height of a fully open mouth as it is painted, in eye distances; the dropping jaw adds to it
_CAVITY = (34, 12, 14)
_TEETH = (214, 206, 196)
_SCLERA = (232, 228, 224)
_ALONG = np.linspace(-1, 1, 25)
_BOW = 1 - _ALONG**2


@dataclass(frozen=True)
class Mouth:
    """`opening` 0 (shut) to 1; `width` 0 (rounded) to 1 (spread)."""

    opening: float
    width: float


def draw_mouth(layer: np.ndarray, who: Identity, mouth: Mouth) -> None:
    """Paints the mouth into the head's layer uint8 [H, W, 4], in place."""
    half = who.mouth_width * (0.29 + 0.15 * mouth.width)
    # The dropping jaw stretches a mouth that is half open more than it parts it: both are evened out here.
    gap = PARTED * mouth.opening * (1.5 - 0.5 * mouth.opening)
    stretched = 0.9 * mouth.opening * (1 - mouth.opening)
    # The corners of a smiling mouth are higher; the bow is rounder the more it opens.
    corner = MOUTH_HEIGHT - who.smile * _ALONG**2
    bow = _BOW ** (1 - 0.5 * mouth.opening)
    upper_in, lower_in = corner - 0.35 * gap * bow, corner + 0.65 * gap * bow
    full = who.lip_fullness * (1 - 0.15 * mouth.opening)
    cupid = 1 - 0.28 * np.exp(-((_ALONG / 0.16) ** 2))
    upper_out = upper_in - 0.105 * full * _BOW**0.8 * cupid
    lower_out = lower_in + 0.15 * (full - stretched) * _BOW**0.7
    x = half * _ALONG

    def paint(above: np.ndarray, below: np.ndarray, colour, wide: float = 1.0) -> None:
        outline = np.concatenate([np.stack([wide * x, above], 1), np.stack([wide * x, below], 1)[::-1]])
        fill(layer, HEAD.pixels(outline), (*colour, 255))

    lip = np.array(who.lip)
    paint(upper_out, corner, lip * 0.88)
    paint(corner, lower_out, lip)
    sheen = lower_in + 0.3 * (lower_out - lower_in)
    paint(sheen, sheen + 0.28 * (lower_out - lower_in), np.minimum(lip * 1.13 + 6, 255), wide=0.6)
    line = np.stack([x * 0.98, (upper_in + lower_in) / 2], axis=1)
    stroke(layer, HEAD.pixels(line), (*(lip * 0.66), 255), 1)
    if gap > 0:
        paint(upper_in, lower_in, _CAVITY)
        # Teeth come out of the dark as the mouth opens.
        bright = min(1.0, max(0.0, (mouth.opening - 0.2) / 0.5))
        teeth = np.array(_CAVITY) + bright * (np.array(_TEETH) - _CAVITY)
        paint(upper_in, upper_in + 0.22 * (lower_in - upper_in), teeth, wide=0.82)


class Eyes:
    """The open eyes of one identity, to be shown between its lids."""

    def __init__(self, who: Identity) -> None:
        self._sides = [_OpenEye(who, side) for side in (-1, 1)]
        self._lashes = np.multiply(who.brow, 0.45)

    def draw(self, layer: np.ndarray, blink: float) -> None:
        """Paints both eyes into the head's layer uint8 [H, W, 4], in place; `blink` 0 (open) to 1 (shut)."""
        for eye in self._sides:
            eye.draw(layer, blink, self._lashes)


class _OpenEye:
    def __init__(self, who: Identity, side: int) -> None:
        self._size = who.eye_size
        self._centre = 0.5 * side
        rows, columns = HEAD.shape
        left, top = HEAD.pixels(np.array([[self._centre - 0.34, -0.24]]))[0].astype(int)
        right, bottom = HEAD.pixels(np.array([[self._centre + 0.34, 0.24]]))[0].astype(int)
        self._box = (slice(max(top, 0), min(bottom, rows)), slice(max(left, 0), min(right, columns)))
        x, y = HEAD.grid()
        x, y = x[:, self._box[1]], y[self._box[0]]
        self._eye = self._paint(who, x, y)
        self._offset = np.array([self._box[1].start, self._box[0].start])

    def _paint(self, who: Identity, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        image = np.empty((y.size, x.size, 3), np.float32)
        image[:] = _SCLERA
        radius = 0.125 * self._size
        part = Canvas(float(x[0, 0]) - 0.5 / HEAD.unit, float(y[0, 0]) - 0.5 / HEAD.unit, 0, 0, HEAD.unit)
        iris, pupil = np.zeros(image.shape[:2], np.uint8), np.zeros(image.shape[:2], np.uint8)
        fill(iris, part.pixels(ellipse((self._centre, -0.01), (radius, radius))), 255)
        fill(pupil, part.pixels(ellipse((self._centre, -0.01), (radius * 0.48,) * 2)), 255)
        blend(image, who.iris, iris / np.float32(255))
        blend(image, (18, 14, 14), pupil / np.float32(255))
        image *= 1 - 0.4 * np.exp(-(((y + 0.14 * self._size) / 0.07) ** 2))[..., None]  # the upper lid's shadow
        glint = spot(x, y, (self._centre + 0.05 * np.sign(who.light[0]), -0.055), (0.026, 0.026))
        blend(image, (255, 255, 255), 0.9 * glint)
        return image

    def draw(self, layer: np.ndarray, blink: float, lashes: np.ndarray) -> None:
        patch = layer[self._box]
        half, bow = 0.25 * self._size, _BOW**0.75
        lower = 0.085 * self._size * bow + 0.01
        upper = (-0.135 * self._size * (1 - blink) + 0.075 * self._size * blink) * bow + 0.01
        x = self._centre + half * _ALONG
        lid, rim = np.stack([x, upper], axis=1), np.stack([x, lower], axis=1)
        if blink < 0.95:
            opening = np.zeros(patch.shape[:2], np.uint8)
            fill(opening, HEAD.pixels(np.concatenate([lid, rim[::-1]])) - self._offset, 255)
            colour = patch[..., :3].astype(np.float32)
            blend(colour, self._eye, opening / np.float32(255))
            patch[..., :3] = np.rint(colour)
        stroke(layer, HEAD.pixels(lid), (*lashes, 255), 2)
