"""Painting on small float canvases in the head's coordinates: soft shapes, blends and smooth noise."""

from dataclasses import dataclass

import cv2
import numpy as np

_FRACTION_BITS = 6


@dataclass(frozen=True)
class Canvas:
    """A rectangle of the head's coordinates: `left`, `top`, `width`, `height` in eye distances, `unit` pixels each."""

    left: float
    top: float
    width: float
    height: float
    unit: int

    @property
    def shape(self) -> tuple[int, int]:
        return round(self.height * self.unit), round(self.width * self.unit)

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """The coordinates of the pixels' centres: x [1, W] and y [H, 1], float32."""
        rows, columns = self.shape
        x = self.left + (np.arange(columns, dtype=np.float32) + 0.5) / self.unit
        y = self.top + (np.arange(rows, dtype=np.float32) + 0.5) / self.unit
        return x[None], y[:, None]

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Points [N, 2] as pixel positions whose integers are the centres of pixels."""
        return (np.asarray(points) - [self.left, self.top]) * self.unit - 0.5

    def mask(self, points: np.ndarray, blur: float = 0.0) -> np.ndarray:
        """The inside of a polygon [N, 2] as coverage 0..1, float32 [H, W]; `blur` is a deviation in eye distances."""
        mask = np.zeros(self.shape, np.uint8)
        fill(mask, self.pixels(points), 255)
        covered = mask.astype(np.float32) / 255
        return soften(covered, blur * self.unit)


def fill(image: np.ndarray, pixels: np.ndarray, colour) -> None:
    """Fills a polygon [N, 2] with smooth edges, in place."""
    fixed = np.rint(pixels * (1 << _FRACTION_BITS)).astype(np.int32)
    cv2.fillPoly(image, [fixed], colour, lineType=cv2.LINE_AA, shift=_FRACTION_BITS)


def stroke(image: np.ndarray, pixels: np.ndarray, colour, thickness: int) -> None:
    """Draws an open line [N, 2] with smooth edges, in place."""
    fixed = np.rint(pixels * (1 << _FRACTION_BITS)).astype(np.int32)
    cv2.polylines(image, [fixed], False, colour, thickness, cv2.LINE_AA, _FRACTION_BITS)


def soften(field: np.ndarray, deviation: float) -> np.ndarray:
    """Gaussian blur with a deviation in pixels; edges are continued."""
    if deviation <= 0:
        return field
    return cv2.GaussianBlur(field, (0, 0), deviation, borderType=cv2.BORDER_REPLICATE)


def blend(image: np.ndarray, colour, coverage: np.ndarray) -> None:
    """Puts `colour` (RGB, or an image [H, W, 3]) over `image` [H, W, 3] where `coverage` [H, W] is 1, in place."""
    image += (np.asarray(colour, np.float32) - image) * coverage[..., None]


def spot(x: np.ndarray, y: np.ndarray, centre: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    """A round soft spot: 1 at its centre, exp(-1/2) at the radii."""
    return np.exp(-0.5 * (((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2))


def ellipse(centre: tuple[float, float], radii: tuple[float, float], points: int = 48) -> np.ndarray:
    """The outline of an ellipse, [points, 2]."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack([centre[0] + radii[0] * np.cos(angle), centre[1] + radii[1] * np.sin(angle)], axis=1)


def smooth_noise(rng: np.random.Generator, positions: np.ndarray, knots: int) -> np.ndarray:
    """A random curve of deviation about 1 at `positions` in 0..1, interpolated smoothly between `knots` values."""
    values = rng.standard_normal(knots + 2)
    scaled = np.clip(positions, 0, 1) * knots
    low = np.minimum(scaled.astype(int), knots)
    share = scaled - low
    share = share * share * (3 - 2 * share)
    return (values[low] * (1 - share) + values[low + 1] * share).astype(np.float32)


def over(below: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """A layer (uint8 [H, W, 4], colour times coverage, then coverage) over an opaque uint8 [H, W, 3] image."""
    clear = cv2.cvtColor(255 - layer[..., 3], cv2.COLOR_GRAY2RGB)
    return cv2.add(cv2.multiply(below, clear, scale=1 / 255), layer[..., :3])


def layer_of(image: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """A layer for `over` from float RGB [H, W, 3] (0..255) and coverage [H, W] (0..1)."""
    colour = np.clip(image, 0, 255) * coverage[..., None]
    return np.rint(np.dstack([colour, 255 * coverage])).astype(np.uint8)
