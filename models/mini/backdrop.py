"""What is behind and below the head: a wall in soft light, neck, shoulders and clothes."""

from dataclasses import dataclass

import numpy as np

from vexpress_trt.models.mini.identity import Identity
from vexpress_trt.models.mini.paint import Canvas, blend, ellipse, layer_of, soften, spot

BODY = Canvas(left=-3.2, top=0.9, width=6.4, height=3.4, unit=40)


@dataclass(frozen=True)
class Backdrop:
    """`wall` uint8 [size, size, 3]; `body` a layer (see `paint.over`) on the canvas `BODY`."""

    wall: np.ndarray
    body: np.ndarray


def paint_backdrop(who: Identity, size: int) -> Backdrop:
    return Backdrop(_wall(who, size), _body(who))


def _wall(who: Identity, size: int) -> np.ndarray:
    """Two colours that run into one another, large soft lights, sometimes the blurred edge of a window or a shelf."""
    rng = np.random.default_rng([who.seed, 0xBA])
    x = ((np.arange(size, dtype=np.float32) + 0.5) / size)[None]
    y = x.T
    angle = rng.uniform(0, 2 * np.pi)
    across = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
    image = np.empty((size, size, 3), np.float32)
    image[:] = who.wall[0]
    blend(image, who.wall[1], np.clip(across + 0.5, 0, 1))
    for _ in range(rng.integers(1, 4)):
        light = spot(x, y, tuple(rng.uniform(0, 1, 2)), tuple(rng.uniform(0.1, 0.3, 2)))
        image *= 1 + rng.uniform(-0.16, 0.2) * light[..., None]
    if rng.uniform() < 0.5:
        edge = rng.uniform(0.1, 0.9)
        softness = rng.uniform(0.02, 0.05)
        step = 1 / (1 + np.exp(-(x - edge) / softness)) * np.ones_like(y)
        image *= 1 + rng.uniform(-0.2, 0.16) * step[..., None]
    image *= 1 + 0.12 * who.light[0] * (x - 0.5)[..., None] - 0.08 * (y - 0.5)[..., None]
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def _body(who: Identity) -> np.ndarray:
    x, y = BODY.grid()
    neck = 0.6 * who.face_width
    image = np.empty((*BODY.shape, 3), np.float32)
    image[:] = np.multiply(who.skin, 0.86)
    # The chin's shadow, and the neck is round.
    image *= 1 - 0.3 * np.exp(-(((y - 1.5) / 0.4) ** 2))[..., None] * np.ones_like(x)[..., None]
    image *= 1 + (0.12 * who.light[0] * x - 0.14 * (x / neck) ** 2 * (np.abs(x) < 2 * neck))[..., None]
    right = np.array([[neck, 0.9], [neck * 1.05, 1.9], [1.4, 2.9]])
    skin = BODY.mask(np.concatenate([right, (right * [-1, 1])[::-1]]))
    shirt = _shirt(who, neck)
    cloth = (
        np.asarray(who.cloth, np.float32)
        * (1.02 + 0.1 * who.light[0] * x / 2 - 0.1 * (y - 2.4) - 0.06 * (np.abs(x) / 2) ** 2)[..., None]
    )
    folds = spot(x, y, (-1.1, 3.1), (0.12, 0.7)) + spot(x, y, (1.15, 3.2), (0.12, 0.7))
    cloth *= 1 - 0.1 * folds[..., None]
    image *= 1 - 0.25 * (soften(shirt, 0.07 * BODY.unit) * (1 - shirt))[..., None]
    blend(image, cloth, shirt)
    if who.neckline == "collar":
        _collar(image, who, neck)
    return layer_of(image, np.maximum(skin, shirt))


def _shirt(who: Identity, neck: float) -> np.ndarray:
    """Coverage of the clothes: shoulders without the neckline's opening."""
    slope = np.linspace(0, 1, 24)
    shoulder_x = neck * 1.02 + (3.0 - neck) * slope
    shoulder_y = 1.86 + 0.95 * slope**1.7 * 1.1 + 0.12 * np.sin(np.pi * slope)
    right = np.stack([shoulder_x, shoulder_y], axis=1)
    outline = np.concatenate([right, [[3.2, 4.4], [-3.2, 4.4]], (right * [-1, 1])[::-1]])
    depth = {"round": 0.32, "vee": 0.85, "collar": 0.5}[who.neckline]
    if who.neckline == "round":
        opening = ellipse((0, 1.86), (neck * 1.04, depth))
    else:
        opening = np.array([[-neck * 1.04, 1.8], [neck * 1.04, 1.8], [0.0, 1.86 + depth]])
    return BODY.mask(outline) * (1 - BODY.mask(opening, blur=0.015))


def _collar(image: np.ndarray, who: Identity, neck: float) -> None:
    for side in (-1, 1):
        flap = np.array([[neck * 0.95, 1.62], [neck * 1.22, 1.9], [0.62, 2.62], [0.02, 2.36]]) * [side, 1]
        blend(image, np.multiply(who.cloth, 0.75), BODY.mask(flap + [0.0, 0.05], blur=0.03) * 0.6)
        blend(image, np.minimum(np.multiply(who.cloth, 1.12), 255), BODY.mask(flap))
