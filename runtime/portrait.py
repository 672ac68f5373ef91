"""The portrait: any photo as RGB pixels, cropped to the output's shape or squashed as upstream does."""

import logging
import os
import struct
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vexpress_trt.engines.errors import UserError

log = logging.getLogger("vexpress")
MIN_SIDE = 64
MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 512 << 20
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow knows formats that run other programs
FACE_HEIGHT = 0.45  # where a face's centre comes to lie in a crop, as a share of its height


def load_portrait(path: Path, *, minimum: tuple[int, int] | None = None, upstream: bool = False) -> np.ndarray:
    """The picture as uint8 RGB [H, W, 3].

    It is turned as its EXIF data says and transparent parts become white; `upstream` does neither, as the original. A
    picture smaller than `minimum` (width, height) and an animation are warned about. Raises UserError when the file is
    missing, empty, huge, damaged, no picture, or below 64 pixels.
    """
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path's, also False for a name too long or a closed folder
        raise UserError(f"the portrait {path} does not exist or is not a file: check --reference_image_path")
    size = path.stat().st_size
    if not 0 < size <= MAX_FILE_BYTES:
        state = "is empty" if size == 0 else f"has {size >> 20} MiB, over the limit of {MAX_FILE_BYTES >> 20} MiB"
        raise UserError(f"the portrait {path} {state}: choose another file")
    image = _read(path, turn=not upstream)
    if min(image.size) < MIN_SIDE:
        raise UserError(
            f"{path} has {image.width}x{image.height} pixels, fewer than {MIN_SIDE}: give a larger portrait"
        )
    if minimum and (image.width < minimum[0] or image.height < minimum[1]):
        log.warning(
            f"{path} has {image.width}x{image.height} pixels, fewer than the output's {minimum[0]}x{minimum[1]}: "
            "the face will be soft, a larger portrait is better"
        )
    try:
        return np.asarray(image.convert("RGB") if upstream else _rgb(image))
    except ValueError:
        raise UserError(f"{path} has colours of an unknown kind ({image.mode}): save it as an RGB picture") from None


def crop_to_aspect(
    image: np.ndarray, width: int, height: int, centre: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The largest part of a picture that has the output's shape, resized to uint8 RGB [height, width, 3].

    `centre`: (x, y) of the face in the picture's pixels, None for the picture's middle. Also returns the part that was
    kept, (left, top, width, height) in the picture's pixels.
    """
    full_height, full_width = image.shape[:2]
    scale = min(full_width / width, full_height / height)
    part_width, part_height = width * scale, height * scale
    x, y = (full_width / 2, full_height / 2) if centre is None else centre
    left = _clamped(x - part_width / 2, full_width - part_width)
    top = _clamped(y - part_height * (0.5 if centre is None else FACE_HEIGHT), full_height - part_height)
    box = (left, top, left + part_width, top + part_height)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(resized), (left, top, part_width, part_height)


def upstream_portrait(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The original's network input, float32 [1, 3, height, width] in [-1, 1].

    It resizes to (height, width) in the place of (width, height), bicubic, and its image processor then resizes what
    does not fit once more, Lanczos (golden README, section 4, "Strategies").
    """
    picture = Image.fromarray(image).resize((height, width), Image.Resampling.BICUBIC)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    scaled = np.asarray(picture, dtype=np.float32) / np.float32(255.0)
    return np.ascontiguousarray((np.float32(2.0) * scaled - np.float32(1.0)).transpose(2, 0, 1)[None])


def upstream_detector_input(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """What the original's detector sees: the picture squashed to uint8 RGB [height, width, 3], bilinear."""
    return cv2.resize(image, (width, height))


def _clamped(start: float, room: float) -> float:
    """A part's start, moved inside; `room` is what the part leaves, which rounding may make slightly negative."""
    return float(min(max(start, 0.0), max(room, 0.0)))


def _read(path: Path, turn: bool) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about bombs and odd metadata: the limit below and the pixels decide
            image = Image.open(path, formats=_FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{path} has {image.width}x{image.height} pixels, over the limit of {MAX_PIXELS // 10**6} million: "
                    "reduce it first"
                )
            if getattr(image, "is_animated", False) and image.format != "MPO":
                log.warning(f"{path} is an animation: its first picture is the portrait")
            image.load()
            return _turned(image) if turn else image
    except UnidentifiedImageError:
        raise UserError(f"{path} is not a picture that can be read: give a JPEG, PNG or WebP") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path} has far too many pixels: reduce it to {MAX_PIXELS // 10**6} million at most") from None
    except (OSError, ValueError, SyntaxError, EOFError, struct.error) as problem:
        raise UserError(f"{path} is damaged ({problem}): give another portrait") from None


def _turned(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (ValueError, SyntaxError, TypeError, KeyError, AttributeError, ZeroDivisionError, struct.error):
        return image  # damaged metadata says nothing about the pixels


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 and 32 bits: Pillow's own conversion would clip instead of scale
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        top = 65535.0 if image.mode.startswith("I") else max(float(values.max()), 1.0)
        return Image.fromarray((np.clip(values / top, 0, 1) * 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode.lower() in ("rgba", "la", "pa"):
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")
