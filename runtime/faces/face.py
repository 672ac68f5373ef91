"""What a face detector gives: faces as three key points, a box and a score."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Face:
    """One detected face; all coordinates are pixels of the image it was found in, (0, 0) being its top left corner.

    points: float32 [3, 2], (x, y) of the eye on the image's left, the eye on the image's right and the nose.
    box: float32 [4], x0, y0, x1, y1; may reach beyond the image.
    score: the detector's confidence in [0, 1].
    """

    points: np.ndarray
    box: np.ndarray
    score: float

    @property
    def size(self) -> float:
        """Longer side of the box in pixels."""
        return float(max(self.box[2] - self.box[0], self.box[3] - self.box[1]))

    def scaled(self, x: float, y: float) -> "Face":
        """The same face with its coordinates multiplied by `x` and `y`, for an image resized by these factors."""
        factor = np.array([x, y], np.float32)
        return Face(self.points * factor, self.box * np.tile(factor, 2), self.score)


class Detector(ABC):
    """Finds faces in images."""

    name: str

    @abstractmethod
    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces in `image` (uint8 RGB [H, W, 3]), the largest and surest first; empty where there is none."""

    def detect_near(self, image: np.ndarray, last: Face) -> list[Face]:
        """Like `detect`, for a video frame that follows one in which `last` was found.

        A detector may answer with that one face only, found from its last place.
        """
        return self.detect(image)


def by_size_and_score(faces: list[Face]) -> list[Face]:
    """Largest and surest first: area of the box times score, descending."""
    return sorted(faces, key=lambda face: -face.score * float(np.prod(face.box[2:] - face.box[:2])))
