"""One face through a video: which of several is meant, frame after frame, and what stands in where none is found."""

from dataclasses import dataclass

import numpy as np

from vexpress_trt.runtime.faces.face import Detector, Face

RIVAL_SIZE = 0.4  # a face smaller than this part of the followed one is background or a mistake, not a second person
REACH = 1.0  # how far a face may move between two frames, in its own sizes, before it may be another one


class FaceFollower:
    """Finds the same face in one frame after another.

    In the first frame the largest face near the middle is taken, then always the one nearest to the last place. A face
    that appears far from there is still taken (the picture was cut), but not when it is one of the others seen before:
    then the followed face is missing. Every `check_every` frames the whole frame is searched for others.

    most_faces: the largest number of faces of a comparable size seen in one frame.
    jumps: indices of the frames in which the face was far from its last place.
    """

    def __init__(self, detector: Detector, check_every: int = 30) -> None:
        self.most_faces = 0
        self.jumps: list[int] = []
        self._detector = detector
        self._check_every = max(1, check_every)
        self._frames = 0
        self._last: Face | None = None
        self._others: list[Face] = []

    def find(self, image: np.ndarray) -> Face | None:
        """The followed face in the next frame (uint8 RGB [H, W, 3]), or None where it is not to be seen."""
        index, self._frames = self._frames, self._frames + 1
        whole = self._last is None or index % self._check_every == 0
        faces = self._detector.detect(image) if whole else self._detector.detect_near(image, self._last)
        if not faces:
            return None
        if self._last is None:
            face = most_prominent(faces, image.shape[1], image.shape[0])
        else:
            face = min(faces, key=lambda found: _distance(found, self._last))
            if _distance(face, self._last) > REACH * self._last.size:
                if any(_distance(face, other) <= REACH * other.size for other in self._others):
                    return None
                self.jumps.append(index)
        rivals = [other for other in faces if other is not face and other.size >= RIVAL_SIZE * face.size]
        if whole or rivals:
            self._others = rivals
        self.most_faces = max(self.most_faces, 1 + len(rivals))
        self._last = face
        return face


def most_prominent(faces: list[Face], width: int, height: int) -> Face:
    """The face that a picture of this size (pixels) is of: large and near the middle.

    Its area counts in full at the centre and a quarter at the corners.
    """
    middle = np.array([width, height]) / 2

    def weight(face: Face) -> float:
        off_centre = min(1.0, float(np.linalg.norm(_centre(face) - middle) / np.linalg.norm(middle)))
        return float(np.prod(face.box[2:] - face.box[:2])) * face.score * (1 - 0.75 * off_centre)

    return max(faces, key=weight)


@dataclass(frozen=True)
class Gap:
    """Frames `first` to `last` (inclusive) in which no face was found."""

    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"


def find_gaps(points: list[np.ndarray | None]) -> list[Gap]:
    """The runs of None in a list of key points, one entry per frame."""
    gaps: list[Gap] = []
    for index, value in enumerate(points):
        if value is None:
            joins = gaps and gaps[-1].last == index - 1
            first = gaps.pop().first if joins else index
            gaps.append(Gap(first, index))
    return gaps


def fill_gaps(points: list[np.ndarray | None]) -> np.ndarray:
    """Key points float32 [T, 3, 2] with missing frames filled in.

    Between two found frames linearly in time; before the first and after the last found frame its points are held. At
    least one entry must not be None.
    """
    found = [index for index, value in enumerate(points) if value is not None]
    known = np.stack([points[index] for index in found]).reshape(len(found), 6)
    frames = np.arange(len(points))
    columns = [np.interp(frames, found, column) for column in known.T]
    return np.stack(columns, axis=1).reshape(-1, 3, 2).astype(np.float32)


def _centre(face: Face) -> np.ndarray:
    return (face.box[:2] + face.box[2:]) / 2


def _distance(one: Face, other: Face) -> float:
    return float(np.linalg.norm(_centre(one) - _centre(other)))
