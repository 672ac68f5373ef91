"""Boxes of the detection cascade."""

import numpy as np

from vexpress_trt.runtime.faces.boxes import crops, distinct, resized, shifted, square


def boxes(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_a_square_keeps_the_centre_and_takes_the_longer_side() -> None:
    np.testing.assert_allclose(square(boxes((0, 0, 10, 30))), boxes((-10, 0, 20, 30)))
    np.testing.assert_allclose(square(boxes((0, 0, 10, 30)), 0.5), boxes((-2.5, 7.5, 12.5, 22.5)))


def test_shifts_are_parts_of_width_and_height() -> None:
    moved = shifted(boxes((10, 10, 30, 50)), np.array([[0.5, -0.25, 0, 1]], np.float32))
    np.testing.assert_allclose(moved, boxes((20, 0, 30, 90)))


def test_suppression_keeps_the_best_of_overlapping_boxes_in_order_of_score() -> None:
    found = boxes((0, 0, 10, 10), (1, 0, 11, 10), (100, 0, 110, 10))
    assert distinct(found, np.array([0.7, 0.9, 0.95]), 0.5).tolist() == [2, 1]
    assert distinct(found, np.array([0.7, 0.9, 0.95]), 0.9).tolist() == [2, 1, 0]


def test_a_box_inside_another_falls_only_when_the_smaller_area_counts() -> None:
    found = boxes((0, 0, 100, 100), (40, 40, 60, 60))
    assert distinct(found, np.array([0.9, 0.8]), 0.7).tolist() == [0, 1]
    assert distinct(found, np.array([0.9, 0.8]), 0.7, of_smaller=True).tolist() == [0]


def test_suppression_of_nothing_is_nothing() -> None:
    assert len(distinct(np.zeros((0, 4), np.float32), np.zeros(0), 0.5)) == 0


def test_a_crop_is_black_beyond_the_image() -> None:
    image = np.full((20, 20, 3), 200, np.uint8)
    inside, half, outside = crops(image, boxes((5, 5, 15, 15), (-10, 0, 10, 20), (50, 50, 60, 60)), 10)
    assert (inside == 200).all()
    assert (half[:, :5] == 0).all() and (half[:, 5:] == 200).all()
    assert (outside == 0).all()


def test_shrinking_averages_what_it_skips() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert abs(int(resized(stripes, 8, 8)[4, 4, 0]) - 100) <= 1
