"""Training data on disk: spoken utterances, and clips as latents with everything they were made from.

Files are numbered and written whole, so that making more of them can be stopped and taken up at any time.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np


def file_of(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npz"


def write_missing(folder: Path, count: int, make: Callable[[int], Mapping[str, np.ndarray]]) -> None:
    """Makes records 0 to count - 1 where they are not on disk yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = file_of(folder, number)
        if path.exists():
            continue
        fresh = path.with_suffix(".new")
        with open(fresh, "wb") as file:
            np.savez(file, **make(number))
        os.replace(fresh, path)


def read_all(folder: Path) -> list[dict[str, np.ndarray]]:
    """All records in the order of their numbers. Raises FileNotFoundError where there are none."""
    paths = sorted(folder.glob("[0-9]*.npz"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no records; run the stage that makes them first")
    return [_read(path) for path in paths]


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
