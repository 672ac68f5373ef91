"""One face through a video, with a detector that follows a script."""

import numpy as np
import pytest

from vexpress_trt.runtime.faces.face import Detector, Face
from vexpress_trt.runtime.faces.follow import FaceFollower, Gap, fill_gaps, find_gaps, most_prominent

FRAME = np.zeros((200, 400, 3), np.uint8)


def face(x: float, y: float = 100, size: float = 40, score: float = 0.99) -> Face:
    points = np.array([[x - 8, y], [x + 8, y], [x, y + 8]], np.float32)
    return Face(points, np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2], np.float32), score)


class Script(Detector):
    """Gives the n-th list of faces for the n-th frame; `near` frames give only the face nearest to the last one."""

    name = "script"

    def __init__(self, *frames: list[Face], shortcut: bool = False) -> None:
        self.frames = list(frames)
        self.shortcut = shortcut
        self.whole = 0

    def detect(self, image: np.ndarray) -> list[Face]:
        self.whole += 1
        return self.frames.pop(0)

    def detect_near(self, image: np.ndarray, last: Face) -> list[Face]:
        if not self.shortcut:
            return self.detect(image)
        return sorted(self.frames.pop(0), key=lambda other: float(np.abs(other.box - last.box).sum()))[:1]


def followed(detector: Script, check_every: int = 30) -> tuple[FaceFollower, list[float | None]]:
    follower = FaceFollower(detector, check_every)
    found = [follower.find(FRAME) for _ in range(len(detector.frames))]
    return follower, [None if it is None else float(it.points[2, 0]) for it in found]


def test_the_first_face_is_the_largest_and_most_central() -> None:
    assert most_prominent([face(30, size=40), face(200, size=38)], 400, 200).points[2, 0] == 200
    assert most_prominent([face(200, size=20), face(60, size=80)], 400, 200).points[2, 0] == 60


def test_the_nearest_face_is_followed_even_where_another_is_larger() -> None:
    frames = [[face(200, size=50), face(320)], [face(205), face(320, size=60)], [face(312, size=80), face(212)]]
    follower, places = followed(Script(*frames))
    assert places == [200, 205, 212]
    assert follower.most_faces == 2
    assert follower.jumps == []


def test_frames_without_a_face_are_none_and_the_face_is_taken_up_again() -> None:
    follower, places = followed(Script([face(200)], [], [], [face(215)]))
    assert places == [200, None, None, 215]
    assert follower.most_faces == 1


def test_another_person_does_not_stand_in_for_a_missing_one() -> None:
    follower, places = followed(Script([face(200, size=50), face(320)], [face(321)], [face(205), face(321)]))
    assert places == [200, None, 205]
    assert follower.jumps == []


def test_a_lone_face_that_jumps_is_followed_and_the_frame_is_noted() -> None:
    follower, places = followed(Script([face(100)], [face(300)], [face(301)]))
    assert places == [100, 300, 301]
    assert follower.jumps == [1]


def test_a_tiny_face_in_the_background_is_not_a_second_person() -> None:
    follower, _ = followed(Script([face(200, size=60), face(380, size=20)]))
    assert follower.most_faces == 1


def test_the_whole_frame_is_searched_again_at_regular_intervals() -> None:
    detector = Script(*[[face(200)] for _ in range(4)], [face(200), face(300)], [face(200), face(300)], shortcut=True)
    follower, places = followed(detector, check_every=4)
    assert places == [200] * 6
    assert detector.whole == 2
    assert follower.most_faces == 2


def test_gaps_are_runs_of_missing_frames() -> None:
    here = np.zeros((3, 2))
    gaps = find_gaps([None, here, None, None, here, here, None])
    assert gaps == [Gap(0, 0), Gap(2, 3), Gap(6, 6)]
    assert [len(gap) for gap in gaps] == [1, 2, 1]
    assert [str(gap) for gap in gaps] == ["0", "2-3", "6"]
    assert find_gaps([here, here]) == []


def test_gaps_are_filled_linearly_inside_and_held_at_the_ends() -> None:
    one, four = np.full((3, 2), 1.0), np.full((3, 2), 4.0)
    four[2] = [-5, 40]
    filled = fill_gaps([None, one, None, None, four, None])
    assert filled.shape == (6, 3, 2) and filled.dtype == np.float32
    np.testing.assert_allclose(filled[:, 0, 0], [1, 1, 2, 3, 4, 4])
    np.testing.assert_allclose(filled[:, 2, 0], [1, 1, -1, -3, -5, -5])
    np.testing.assert_allclose(filled[:, 2, 1], [1, 1, 14, 27, 40, 40])


def test_a_track_without_gaps_is_unchanged() -> None:
    points = np.random.default_rng(0).normal(size=(5, 3, 2)).astype(np.float32)
    np.testing.assert_array_equal(fill_gaps(list(points)), points)


@pytest.mark.parametrize("rate", [0, 1])
def test_a_check_interval_below_one_frame_searches_every_frame(rate: int) -> None:
    detector = Script([face(200)], [face(201)], shortcut=True)
    followed(detector, check_every=rate)
    assert detector.whole == 2
