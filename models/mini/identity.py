"""Who is drawn: the numbers that make one face different from another, chosen by a seed."""

from dataclasses import dataclass

import numpy as np

Colour = tuple[float, float, float]  # RGB, 0..255

# From light to dark; a skin lies between two neighbours. None is so dark that the open mouth would not stand out.
_SKINS = ((246, 214, 192), (232, 190, 162), (214, 166, 134), (186, 134, 102), (156, 106, 80), (136, 92, 70))
_HAIRS = (
    (34, 28, 27),
    (58, 40, 32),
    (88, 58, 40),
    (122, 80, 50),
    (150, 76, 44),
    (196, 156, 98),
    (222, 192, 140),
    (150, 146, 144),
)
_IRISES = ((88, 56, 34), (110, 74, 42), (74, 104, 124), (86, 126, 150), (92, 116, 78), (104, 108, 110))
_CLOTHES = (
    (48, 62, 96),
    (120, 44, 52),
    (56, 92, 78),
    (202, 196, 184),
    (70, 70, 76),
    (164, 120, 66),
    (96, 74, 120),
    (186, 104, 92),
    (104, 142, 172),
    (222, 206, 150),
)
HAIR_STYLES = ("short", "parted", "fringe", "bob", "long", "receding")
NECKLINES = ("round", "vee", "collar")
FIRST_HELD_OUT = 1_000_000  # identities from here on are never trained on


@dataclass(frozen=True)
class Identity:
    """One person and the place they sit in. Lengths are in eye distances, colours RGB 0..255."""

    seed: int
    skin: Colour
    hair: Colour
    brow: Colour
    iris: Colour
    lip: Colour
    cloth: Colour
    wall: tuple[Colour, Colour]
    light: tuple[float, float]  # where the light comes from: right (x) and above (y) are positive
    face_width: float  # half of the face's width
    jaw: float  # exponent of the lower outline: the larger, the squarer
    chin: float  # from the eyes down
    hair_style: str
    hair_volume: float
    hairline: float  # from the eyes up
    parting: float  # sideways, -1..1
    eye_size: float
    brow_height: float
    brow_thickness: float
    brow_slope: float
    nose_width: float
    mouth_width: float
    lip_fullness: float
    smile: float
    blush: float
    neckline: str


def draw_identity(seed: int) -> Identity:
    """The identity of a seed; equal seeds give equal identities."""
    rng = np.random.default_rng([seed, 0x1D])
    skin = _between(_SKINS, rng)
    hair = _tinted(_HAIRS[rng.integers(len(_HAIRS))], rng)
    style = HAIR_STYLES[rng.integers(len(HAIR_STYLES))]
    # Walls are muted, and their second colour is near the first: a portrait then tells what is behind the head.
    grey = float(rng.uniform(100, 205))
    wall = tuple(float(grey + tint) for tint in rng.normal(0, 10, 3).clip(-20, 20))
    return Identity(
        seed=seed,
        skin=skin,
        hair=hair,
        brow=tuple(0.72 * h + 0.12 * s for h, s in zip(hair, skin, strict=True)),
        iris=_IRISES[rng.integers(len(_IRISES))],
        lip=_lip(skin, rng),
        cloth=_varied(_CLOTHES[rng.integers(len(_CLOTHES))], rng, 14),
        wall=(wall, _varied(wall, rng, 26)),
        light=(float(rng.uniform(-0.8, 0.8)), float(rng.uniform(0.25, 0.7))),
        face_width=float(rng.uniform(1.06, 1.24)),
        jaw=float(rng.uniform(1.9, 2.8)),
        chin=float(rng.uniform(1.56, 1.74)),
        hair_style=style,
        hair_volume=float(rng.uniform(0.05, 0.26)),
        hairline=float(rng.uniform(0.78, 1.0)),
        parting=float(rng.uniform(-1, 1)),
        eye_size=float(rng.uniform(1.0, 1.26)),
        brow_height=float(rng.uniform(0.34, 0.42)),
        brow_thickness=float(rng.uniform(0.05, 0.1)),
        brow_slope=float(rng.uniform(-0.07, 0.02)),
        nose_width=float(rng.uniform(0.2, 0.3)),
        mouth_width=float(rng.uniform(0.92, 1.1)),
        lip_fullness=float(rng.uniform(0.75, 1.3)),
        smile=float(rng.uniform(0.0, 0.06)),
        blush=float(rng.uniform(0.0, 0.22)),
        neckline=NECKLINES[rng.integers(len(NECKLINES))],
    )


def _between(palette: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    position = rng.uniform(0, len(palette) - 1)
    low = int(position)
    share = position - low
    return tuple(a + share * (b - a) for a, b in zip(palette[low], palette[low + 1], strict=True))


def _varied(colour: Colour, rng: np.random.Generator, spread: float) -> Colour:
    return tuple(float(np.clip(channel + rng.uniform(-spread, spread), 12, 250)) for channel in colour)


def _tinted(colour: Colour, rng: np.random.Generator) -> Colour:
    """Lighter or darker, warmer or cooler, but no other hue."""
    shade, warmth = rng.uniform(0.85, 1.15), rng.uniform(-6, 6)
    return tuple(float(np.clip(c * shade + w, 14, 240)) for c, w in zip(colour, (warmth, 0, -warmth), strict=True))


def _lip(skin: Colour, rng: np.random.Generator) -> Colour:
    red = rng.uniform(0.25, 0.6)
    target = (188.0, 78.0, 84.0)
    return tuple(0.9 * s + red * (t - 0.9 * s) for s, t in zip(skin, target, strict=True))
