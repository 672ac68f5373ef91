"""The embedded detector on a public-domain portrait."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from vexpress_trt.runtime.faces import Face
from vexpress_trt.runtime.faces.mtcnn import MtcnnDetector

PORTRAIT = Path(__file__).resolve().parents[3] / "models" / "demo" / "portrait.jpg"
# Set by hand at eight times the size: pupils and tip of the nose, in pixels of the 512x512 portrait.
MARKED = np.array([[203.5, 100.9], [247.8, 103.4], [225.0, 126.3]], np.float32)


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    image = cv2.cvtColor(cv2.imread(str(PORTRAIT)), cv2.COLOR_BGR2RGB)
    return cv2.resize(image, (512, 512), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def detector() -> MtcnnDetector:
    return MtcnnDetector()


def warped(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int] = (512, 512)) -> np.ndarray:
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)


def placed(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def off(face: Face, points: np.ndarray) -> float:
    """Largest distance of a face's points from where they should be, in pixels."""
    return float(np.linalg.norm(face.points - points, axis=1).max())


def test_eyes_and_nose_are_where_a_person_marks_them(detector: MtcnnDetector, portrait: np.ndarray) -> None:
    (face,) = detector.detect(portrait)
    assert off(face, MARKED) < 3
    assert face.points.dtype == face.box.dtype == np.float32
    assert face.score > 0.98
    assert (face.box[:2] < MARKED.min(axis=0)).all() and (MARKED.max(axis=0) < face.box[2:]).all()


@pytest.mark.parametrize("degrees", [-25, 0, 25])
@pytest.mark.parametrize("scale", [0.6, 1.0, 2.0])
def test_points_turn_and_grow_with_the_picture(
    detector: MtcnnDetector, portrait: np.ndarray, degrees: float, scale: float
) -> None:
    matrix = cv2.getRotationMatrix2D((225, 110), degrees, scale)
    matrix[:, 2] += [31, 80]
    face = detector.detect(warped(portrait, matrix))[0]
    assert off(face, placed(MARKED, matrix)) < 4 * max(1, scale)


def test_a_mirrored_picture_has_mirrored_points_in_the_same_order(
    detector: MtcnnDetector, portrait: np.ndarray
) -> None:
    (face,) = detector.detect(np.ascontiguousarray(portrait[:, ::-1]))
    assert off(face, np.array([[512, 0]]) + MARKED[[1, 0, 2]] * [[-1, 1]]) < 3


@pytest.mark.parametrize("size", [96, 256, 1500])
def test_any_size_gives_pixels_of_that_size(detector: MtcnnDetector, portrait: np.ndarray, size: int) -> None:
    (face,) = detector.detect(cv2.resize(portrait, (size, size), interpolation=cv2.INTER_AREA))
    assert off(face, MARKED * size / 512) < max(1.5, 3 * size / 512)


def test_a_face_larger_than_the_picture_is_found(detector: MtcnnDetector, portrait: np.ndarray) -> None:
    (face,) = detector.detect(np.ascontiguousarray(portrait[90:150, 193:257]))
    assert off(face, MARKED - [193, 90]) < 3.5


def test_two_faces_come_largest_first(detector: MtcnnDetector, portrait: np.ndarray) -> None:
    scene = np.full((400, 700, 3), 90, np.uint8)
    scene[100:300, 20:220] = cv2.resize(portrait[:256, 96:352], (200, 200), interpolation=cv2.INTER_AREA)
    scene[50:350, 350:650] = cv2.resize(portrait[:256, 96:352], (300, 300), interpolation=cv2.INTER_AREA)
    large, small = detector.detect(scene)
    assert off(large, (MARKED - [96, 0]) * 300 / 256 + [350, 50]) < 4
    assert off(small, (MARKED - [96, 0]) * 200 / 256 + [20, 100]) < 4
    assert large.size > small.size


@pytest.mark.parametrize("shape", [(1, 1), (16, 300), (200, 320), (512, 512)])
def test_no_face_is_found_in_noise_or_flat_colour(detector: MtcnnDetector, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(7).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert detector.detect(noise) == []
    assert detector.detect(np.full((*shape, 3), 128, np.uint8)) == []


def test_a_face_is_found_near_its_last_place_without_the_proposal_network(
    detector: MtcnnDetector, portrait: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (last,) = detector.detect(portrait)
    monkeypatch.setattr(detector, "_propose", lambda image: pytest.fail("the whole cascade ran"))
    matrix = np.array([[1.04, 0, 3], [0, 1.04, -6]])
    (face,) = detector.detect_near(warped(portrait, matrix), last)
    assert off(face, placed(MARKED, matrix)) < 3


def test_a_face_far_from_its_last_place_is_found_by_the_whole_cascade(
    detector: MtcnnDetector, portrait: np.ndarray
) -> None:
    (last,) = detector.detect(portrait)
    matrix = np.array([[1.0, 0, 150], [0, 1.0, 120]])
    (face,) = detector.detect_near(warped(portrait, matrix), last)
    assert off(face, placed(MARKED, matrix)) < 3
    elsewhere = Face(last.points + 5000, last.box + 5000, last.score)
    (face,) = detector.detect_near(portrait, elsewhere)
    assert off(face, MARKED) < 3


def test_nothing_is_found_where_the_face_has_gone(detector: MtcnnDetector, portrait: np.ndarray) -> None:
    (last,) = detector.detect(portrait)
    assert detector.detect_near(np.full((512, 512, 3), 90, np.uint8), last) == []


def test_points_hardly_tremble_when_the_picture_moves_by_fractions_of_a_pixel(
    detector: MtcnnDetector, portrait: np.ndarray
) -> None:
    seen = []
    for step in np.linspace(0, 3, 13):
        matrix = np.array([[1, 0, step], [0, 1, step / 2]])
        seen.append(detector.detect(warped(portrait, matrix))[0].points - [step, step / 2])
    assert np.std(seen, axis=0).max() < 0.4
