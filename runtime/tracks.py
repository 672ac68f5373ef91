"""V-Kps tracks on disk: three points (left eye, right eye, nose) per frame, in pixels.

* `.pth`, upstream's form: a torch.save'd list with one [3, 2] array per frame. Read without torch and without
  unpickling (`inert_pickle`); also accepted: tensors, nested lists, NumPy 1 and 2, zip and legacy files.
* `.npy`: one [T, 3, 2] array; the frame size and rate it belongs to stand beside it in `<name>.npy.json`.

Tracks come from the internet, so size, shape and values are checked before anything uses them.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path
from vexpress_trt.runtime.array_records import PickleRefused
from vexpress_trt.runtime.torch_files import read_torch_file, write_torch_zip

MAX_FILE_BYTES = 64 << 20
MAX_FRAMES = 400_000
MAX_COORDINATE = 1e6
_MAX_SIDECAR_BYTES = 64 << 10
_SUFFIXES = (".pth", ".npy")


@dataclass(frozen=True)
class Track:
    """A key-point track: `points` float32 or float64 [T, 3, 2] in pixels (x, y) of a frame of `size` (width, height).

    `size` and `fps` are None where the file does not say (a `.pth` never does).
    """

    points: np.ndarray
    size: tuple[int, int] | None = None
    fps: float | None = None


def load_track(path: Path) -> Track:
    """Read a `.pth` or `.npy` track; float64 stays float64, every other number type becomes float32.

    Raises UserError when the file is missing, empty, too large, damaged, of another kind, of another shape, holds
    values that are not finite, or asks for anything but arrays (such a file is never executed).
    """
    path = Path(path)
    _check_suffix(path)
    if not os.path.isfile(path):
        raise UserError(f"the key-point track {path} does not exist or is not a file; check --kps_path")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"the key-point track {path} is empty; extract it again with `vexpress extract`")
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"the key-point track {path} has {size >> 20} MB, more than the {MAX_FILE_BYTES >> 20} MB of any real "
            "track; check --kps_path"
        )
    try:
        if path.suffix.lower() == ".npy":
            return _load_npy(path)
        return Track(_points_of(path, read_torch_file(path.read_bytes(), max_elements=MAX_FRAMES * 10)))
    except PickleRefused as problem:
        raise UserError(
            f"the key-point track {path} was not read: {problem}; use a track made by `vexpress extract` or V-Express"
        ) from problem
    except PermissionError as problem:
        raise UserError(f"the key-point track {path} may not be read; check its permissions") from problem


def save_track(path: Path, points: np.ndarray, size: tuple[int, int] | None = None, fps: float | None = None) -> None:
    """Write a track [T, 3, 2] as `.pth` or `.npy` (by suffix), whole or not at all.

    `.pth`: a list of T lists of 3 lists of 2 numbers, so that `torch.tensor(torch.load(path))`, upstream's way to read
    a track, gives float32 [T, 3, 2] in every torch, also where weights-only loading refuses NumPy arrays. `.npy`: the
    array and `<name>.npy.json` with `width`, `height` and `fps`. Raises UserError for another suffix, points that
    `load_track` would refuse, or a place that cannot be written.
    """
    path = Path(path)
    _check_suffix(path)
    points = _checked(path, np.asarray(points))
    if path.suffix.lower() == ".pth":
        with atomic_path(path) as temporary:
            write_torch_zip(temporary, points.tolist())
        return
    width, height = size or (None, None)
    text = json.dumps({"width": width, "height": height, "fps": fps}, indent=2) + "\n"
    with atomic_path(sidecar(path)) as temporary_json, atomic_path(path) as temporary:
        temporary_json.write_text(text)
        with open(temporary, "wb") as file:
            np.save(file, points, allow_pickle=False)


def sidecar(path: Path) -> Path:
    """Where the frame's size and rate of a .npy track lie."""
    return path.with_name(path.name + ".json")


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in _SUFFIXES:
        raise UserError(f"a key-point track is a .pth or .npy file, {path} is neither; rename or convert it")


def _load_npy(path: Path) -> Track:
    try:
        # Mapping checks the header's shape against the file's size before any memory is taken.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, OverflowError, SyntaxError, TokenError) as problem:
        if isinstance(problem, PermissionError):
            raise
        raise UserError(
            f"the key-point track {path} is damaged or not an array of numbers; make it again with `vexpress extract`"
        ) from problem
    if not isinstance(array, np.ndarray):
        array.close()
        raise UserError(f"the key-point track {path} is an .npz archive; save the one array with numpy.save")
    size, fps = _read_sidecar(sidecar(path))
    return Track(_checked(path, array), size, fps)


def _read_sidecar(path: Path) -> tuple[tuple[int, int] | None, float | None]:
    if not os.path.exists(path):
        return None, None
    try:
        if not path.is_file() or path.stat().st_size > _MAX_SIDECAR_BYTES:
            raise ValueError("no file, or too large")
        values = json.loads(path.read_text(encoding="utf-8"))
        width, height, fps = values.get("width"), values.get("height"), values.get("fps")
        if (width is None) != (height is None):
            raise ValueError("half a size")
        size = None if width is None else (_positive_int(width), _positive_int(height))
        return size, None if fps is None else _positive(fps)
    except (ValueError, AttributeError, TypeError, OSError, RecursionError) as problem:
        raise UserError(
            f'the frame size and rate in {path} cannot be read; it should look like {{"width": 512, "height": 512, '
            '"fps": 30.0} (or remove the file and pass --kps_size)'
        ) from problem


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ValueError(f"{value!r} is not a positive number")
    return float(value)


def _positive_int(value: Any) -> int:
    number = _positive(value)
    if number != int(number):
        raise ValueError(f"{value!r} is not a whole number")
    return int(number)


def _points_of(path: Path, value: Any) -> np.ndarray:
    """The [T, 3, 2] array of what a `.pth` holds: one array, or a list with an array or nested list per frame."""
    if isinstance(value, np.ndarray):
        return _checked(path, value)
    if not isinstance(value, list):
        raise UserError(
            f"the key-point track {path} holds a {type(value).__name__} instead of a list of [3, 2] arrays; "
            "use a track made by `vexpress extract` or V-Express"
        )
    _check_length(path, len(value))
    frames = [_frame(path, index, item) for index, item in enumerate(value)]
    return _checked(path, np.stack(frames))


def _frame(path: Path, index: int, value: Any) -> np.ndarray:
    """One frame as float array [3, 2]; Python numbers become float32 as in torch."""
    if isinstance(value, np.ndarray):
        array = value
    else:
        well_formed = isinstance(value, list) and len(value) == 3 and all(map(_is_pair, value))
        array = np.array([[float(n) for n in pair] for pair in value], np.float32) if well_formed else None
    if array is None or array.shape != (3, 2):
        shape = "something else" if array is None else f"an array of shape {list(array.shape)}"
        raise UserError(
            f"the key-point track {path} holds {shape} for frame {index} where [3, 2] is needed (left eye, right eye, "
            "nose as x, y); use a track made by `vexpress extract` or V-Express"
        )
    return array


def _is_pair(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.shape == (2,) and value.dtype.kind in "fiu"
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.shape == () and value.dtype.kind in "fiu"
    return type(value) is float or type(value) is int and abs(value) < 2**63


def _check_length(path: Path, frames: int) -> None:
    if frames == 0:
        raise UserError(f"the key-point track {path} has no frames; extract it again with `vexpress extract`")
    if frames > MAX_FRAMES:
        raise UserError(
            f"the key-point track {path} has {frames} frames, more than the {MAX_FRAMES} of any clip; cut it"
        )


def _checked(path: Path, array: np.ndarray) -> np.ndarray:
    """`array` as native float32 or float64 [T, 3, 2] with finite values of a sensible size."""
    if array.ndim != 3 or array.shape[1:] != (3, 2) or array.dtype.kind not in "fiu":
        raise UserError(
            f"the key-point track {path} is an array of {array.dtype} {list(array.shape)} where numbers [T, 3, 2] are "
            "needed (left eye, right eye, nose as x, y per frame)"
        )
    _check_length(path, array.shape[0])
    points = np.array(array, dtype=np.float64 if array.dtype.itemsize == 8 and array.dtype.kind == "f" else np.float32)
    bad = ~(np.abs(points) <= MAX_COORDINATE).all(axis=(1, 2))
    if bad.any():
        frame = int(np.argmax(bad))
        worst = points[frame].ravel()[~(np.abs(points[frame].ravel()) <= MAX_COORDINATE)][0]
        value = "a value that is not a number" if math.isnan(worst) else f"the coordinate {worst:g}"
        raise UserError(f"the key-point track {path} holds {value} in frame {frame}; extract it again or repair it")
    return points
