"""A finished frame."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Frame:
    """One finished frame: uint8 RGB [H, W, 3], and when it is shown, in seconds."""

    index: int
    time: float
    image: np.ndarray
