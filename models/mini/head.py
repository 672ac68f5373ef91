"""The part of a head that does not move within it, painted once per identity: skin, nose, brows, shut lids, hair."""

from dataclasses import dataclass

import numpy as np

from vexpress_trt.models.mini.identity import Identity
from vexpress_trt.models.mini.paint import Canvas, blend, ellipse, layer_of, smooth_noise, soften, spot
from vexpress_trt.models.mini.pose import NOSE_LENGTH

HEAD = Canvas(left=-1.9, top=-2.1, width=3.8, height=4.7, unit=48)
MOUTH_HEIGHT = 1.12  # below the eyes
_BROWS_AND_LASHES = 0.82
JAW_DROP = 0.13  # of the chin when the mouth is fully open, in eye distances
_ROUNDNESS, _MUZZLE = 0.55, 0.42  # how strongly the head is curved, and how far the mouth protrudes


@dataclass(frozen=True)
class Head:
    """Layers on the canvas `HEAD` (see `paint.over`), and how its points move.

    `relief` [H, W] float32: how much a point follows the nose when the head turns (1 at its tip, 0 between the eyes,
    below 0 for what is behind them). `jaw` [H, W]: how much of `JAW_DROP` it goes down when the mouth opens.
    """

    front: np.ndarray
    back: np.ndarray
    relief: np.ndarray
    jaw: np.ndarray


def paint_head(who: Identity) -> Head:
    x, y = HEAD.grid()
    face = HEAD.mask(face_outline(who))
    image = np.empty((*HEAD.shape, 3), np.float32)
    image[:] = who.skin
    _ears(image, who)
    coverage = np.maximum(face, _ear_mask(who))
    _shade_skin(image, who, x, y)
    _eye_sockets(image, who, x, y)
    _nose(image, who, x, y)
    _brows(image, who)
    front = HEAD.mask(_front_hair(who), blur=0.025)
    # Hair throws a soft shadow on the forehead.
    image *= 1 - 0.22 * (soften(front, 0.09 * HEAD.unit) * face)[..., None]
    blend(image, _hair_colour(who, x, y), front)
    coverage = np.maximum(coverage, front)
    back = HEAD.mask(_back_hair(who), blur=0.03)
    dark = _hair_colour(who, x, y) * 0.72
    return Head(layer_of(image, coverage), layer_of(dark, back), _relief(x, y), _jaw(who, x, y))


def face_outline(who: Identity) -> np.ndarray:
    """The outline of the face, [N, 2]: a half ellipse above, a jaw below."""
    middle, top = 0.15, -1.5
    up = np.linspace(0, 1, 32)
    above = np.stack([np.sqrt(1 - up**2) * who.face_width, middle + (top - middle) * up], axis=1)
    angle = np.linspace(0, np.pi / 2, 40)
    below_y = middle + (who.chin - middle) * np.sin(angle)
    below_x = who.face_width * np.clip(np.cos(angle), 0, 1) ** (2 / who.jaw)
    below = np.stack([below_x, below_y], axis=1)
    right = np.concatenate([above[::-1], below[1:]])
    return np.concatenate([right, (right * [-1, 1])[::-1]])


def _ear_mask(who: Identity) -> np.ndarray:
    ears = [HEAD.mask(ellipse((side * who.face_width * 0.99, 0.3), (0.17, 0.34))) for side in (-1, 1)]
    return np.maximum(*ears)


def _ears(image: np.ndarray, who: Identity) -> None:
    for side in (-1, 1):
        inner = HEAD.mask(ellipse((side * (who.face_width + 0.02), 0.3), (0.1, 0.22)), blur=0.04)
        blend(image, np.multiply(who.skin, 0.78), inner * 0.8)


def _shade_skin(image: np.ndarray, who: Identity, x: np.ndarray, y: np.ndarray) -> None:
    """Light from one side on an egg-shaped surface, blush on the cheeks, shadow below the lip and at the edge."""
    across, along = x / (who.face_width * 1.12), (y - 0.1) / 1.8
    depth = np.sqrt(np.clip(1 - across**2 - along**2, 0.03, 1))
    shade = 0.74 + 0.16 * depth + 0.15 * (across * who.light[0] - along * who.light[1]) + 0.08
    shade += 0.05 * spot(x, y, (0.3 * who.light[0], -0.7), (0.5, 0.3))
    for side in (-1, 1):
        shade += 0.05 * spot(x, y, (side * 0.62, 0.5), (0.22, 0.16))
    shade -= 0.1 * spot(x, y, (0, MOUTH_HEIGHT + 0.27), (0.24, 0.05))
    shade += 0.05 * spot(x, y, (0, who.chin - 0.17), (0.2, 0.1))
    shade -= 0.035 * spot(x, y, (0, MOUTH_HEIGHT - 0.2), (0.05, 0.08))
    image *= shade[..., None]
    cheeks = sum(spot(x, y, (side * 0.68, 0.62), (0.26, 0.2)) for side in (-1, 1))
    blend(image, (206, 92, 84), who.blush * cheeks)


def _eye_sockets(image: np.ndarray, who: Identity, x: np.ndarray, y: np.ndarray) -> None:
    """Shadow around the eyes, and the shut lids that show while blinking."""
    for side in (-1, 1):
        image *= 1 - 0.13 * spot(x, y, (side * 0.47, -0.06), (0.27, 0.16))[..., None]
        image *= 1 - 0.06 * spot(x, y, (side * 0.5, 0.2), (0.22, 0.06))[..., None]
        image *= 1 + 0.05 * spot(x, y, (side * 0.5, -0.03), (0.16, 0.07))[..., None]


def _nose(image: np.ndarray, who: Identity, x: np.ndarray, y: np.ndarray) -> None:
    """Bridge, sides, tip and nostrils; the tip is at the third key point."""
    dark = 1 if who.light[0] <= 0 else -1
    half = who.nose_width
    image *= 1 - 0.09 * spot(x, y, (dark * 0.15, 0.3), (0.07, 0.32))[..., None]
    image *= 1 + 0.07 * spot(x, y, (-dark * 0.02, 0.3), (0.05, 0.3))[..., None]
    image *= 1 - 0.15 * spot(x, y, (0, NOSE_LENGTH + 0.15), (half * 0.9, 0.045))[..., None]
    for side in (-1, 1):
        image *= 1 - 0.13 * spot(x, y, (side * half * 1.1, NOSE_LENGTH + 0.02), (0.035, 0.08))[..., None]
        nostril = spot(x, y, (side * half * 0.5, NOSE_LENGTH + 0.115), (0.06, 0.028))
        blend(image, np.multiply(who.skin, (0.42, 0.32, 0.3)), 0.75 * nostril)
    image *= 1 + 0.13 * spot(x, y, (-dark * 0.03, NOSE_LENGTH - 0.03), (0.1, 0.085))[..., None]


def _brows(image: np.ndarray, who: Identity) -> None:
    along = np.linspace(-1, 1, 17)
    for side in (-1, 1):
        x = side * (0.5 + 0.3 * along)
        arch = -who.brow_height - 0.05 * (1 - along**2) - who.brow_slope * along
        thick = who.brow_thickness * (1 - 0.75 * np.clip(along, 0, 1) ** 2) * np.clip((along + 1) * 5, 0.4, 1)
        outline = np.concatenate(
            [np.stack([x, arch - thick / 2], axis=1), np.stack([x, arch + thick / 2], axis=1)[::-1]]
        )
        blend(image, who.brow, _BROWS_AND_LASHES * HEAD.mask(outline, blur=0.015))


def _front_hair(who: Identity) -> np.ndarray:
    """The outline of the hair in front of the head, [N, 2]."""
    volume, line = who.hair_volume, who.hairline
    wide, top = who.face_width + 0.03 + 0.75 * volume, 1.55 + volume
    ends = {"short": 0.1, "receding": 0.05, "parted": 0.0, "fringe": 0.25, "bob": 1.25, "long": 1.5}[who.hair_style]
    swell = 0.1 if who.hair_style in ("bob", "long") else 0.0
    angle = np.linspace(0, np.pi, 48)
    arc = np.stack([wide * np.cos(angle), -(top - 0.1) * np.sin(angle) ** 0.92 - 0.1], axis=1)
    drop = np.linspace(0, 1, 10)[1:]
    side = np.stack([wide + swell * np.sin(np.pi * drop * 0.9), -0.1 + (ends + 0.1) * drop], axis=1)
    inner = who.face_width * (0.93 if ends < 1 else 0.84)
    share = np.linspace(-1, 1, 41)
    if who.hair_style == "fringe":
        edge = -0.5 - 0.1 * (who.hairline - 0.78) - 0.05 * np.cos(5 * share + who.parting) - 0.12 * np.abs(share) ** 3
    elif who.hair_style == "parted":
        gap = 0.35 * np.sign(who.parting) * (0.5 + 0.5 * abs(who.parting))
        edge = -line - 0.2 + 0.62 * np.abs(share - gap) ** 1.3
    elif who.hair_style == "receding":
        edge = -line - 0.3 + 0.75 * share**4 - 0.12 * np.exp(-(((np.abs(share) - 0.55) / 0.18) ** 2))
    else:
        edge = -line + 0.1 * who.parting * share + 0.45 * share**4
    hairline = np.stack([inner * share, edge], axis=1)
    left_in = np.stack([np.full(6, -inner), np.linspace(ends, edge[0], 6)], axis=1)
    right_in = np.stack([np.full(6, inner), np.linspace(edge[-1], ends, 6)], axis=1)
    return np.concatenate([arc, side * [-1, 1], left_in, hairline, right_in, side[::-1]])


def _back_hair(who: Identity) -> np.ndarray:
    wide = who.face_width + 0.02 + 0.75 * who.hair_volume
    if who.hair_style == "long":
        return np.array(
            [[-wide, -0.4], [-wide - 0.12, 1.2], [-wide - 0.02, 2.3], [-0.5, 2.5], [0.5, 2.5], [wide + 0.02, 2.3]]
            + [[wide + 0.12, 1.2], [wide, -0.4]]
        )
    if who.hair_style == "bob":
        return np.array(
            [[-wide, -0.4], [-wide - 0.1, 1.2], [-wide + 0.2, 1.6], [wide - 0.2, 1.6], [wide + 0.1, 1.2], [wide, -0.4]]
        )
    return ellipse((0, -0.3), (who.face_width * 0.98, 1.0))


def _hair_colour(who: Identity, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Hair [H, W, 3]: strands that run from the crown, a band of light across them."""
    rng = np.random.default_rng([who.seed, 0x4A])
    angle = np.arctan2(x - 0.25 * who.parting, 2.4 + y * 0.8)
    strands = smooth_noise(rng, (angle / 1.6 + 0.5).ravel(), 22).reshape(angle.shape)
    sheen = spot(x, y, (0.5 * who.light[0], -1.35), (0.75, 0.2)) * (0.4 + 0.6 * who.light[1])
    side = 0.12 * who.light[0] * x - 0.06 * y
    shade = 0.95 + 0.07 * strands + side
    lift = 0.25 * sheen * (1 + 0.25 * strands)
    return np.asarray(who.hair, np.float32) * shade[..., None] + (60 + 0.4 * np.mean(who.hair)) * lift[..., None]


def _egg(x, y):
    """The height of an egg-shaped head's surface, 1 at its front."""
    return 1 - (x / 1.25) ** 2 - ((y - 0.4) / 1.8) ** 2


def _relief(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """See `Head`. The head is a round surface with a nose on it."""
    turn = _ROUNDNESS * (np.clip(_egg(x, y), -0.8, 1) - _egg(0.5, 0.0))  # 0 at the eyes
    # The mouth is level, so that its height does not change when the head nods.
    level = _smooth((0.95 - np.abs(x)) / 0.45) * _smooth((0.65 - np.abs(y - MOUTH_HEIGHT - 0.15)) / 0.35)
    turn = turn + (_MUZZLE - turn) * level
    middle = np.abs(x).argmin(), np.abs(y - NOSE_LENGTH).argmin()
    turn = turn + (1 - turn[middle[1], middle[0]]) * spot(x, y, (0, NOSE_LENGTH), (0.2, 0.17))
    return turn.astype(np.float32)


def _jaw(who: Identity, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """See `Head`. What is stretched is mostly the mouth's dark inside."""
    fall = _smooth((y - MOUTH_HEIGHT) / (2 * JAW_DROP))  # as sudden as can be without folding
    beside = _smooth((who.face_width * 1.08 - np.abs(x)) / (who.face_width * 1.08 - 0.45))
    return (fall * beside).astype(np.float32)


def _smooth(share: np.ndarray) -> np.ndarray:
    share = np.clip(share, 0, 1)
    return share * share * (3 - 2 * share)
