"""Symbolic dimensions."""

import pytest

from vexpress_trt.engines.dims import DimensionError, evaluate, is_dimension, solve, symbols


@pytest.mark.parametrize(
    ("dimension", "sizes", "size"),
    [
        (7, {}, 7),
        ("h", {"h": 9}, 9),
        ("8*h", {"h": 9}, 72),
        ("((h + 1)//2)*((w + 1)//2)", {"h": 9, "w": 4}, 10),
        ("(S - 80)//320", {"S": 1000}, 2),
        ("-h + 10", {"h": 4}, 6),
        ("h*w", {"h": 2}, None),
    ],
)
def test_a_dimension_has_the_size_its_symbols_give(dimension: int | str, sizes: dict, size: int | None) -> None:
    assert evaluate(dimension, sizes) == size


def test_sizes_are_read_off_symbols_and_multiples() -> None:
    shapes = [("image", ("N", 3, "8*h", "w*8"), (2, 3, 72, 40)), ("key", (1, "h*w"), (1, 45))]
    assert solve(shapes) == {"N": 2, "h": 9, "w": 5}


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ([("a", ("h",), (1,)), ("b", ("h", "w"), (2, 2))], r"b has size 2 on axis 0, expected 1 .*with h=1"),
        ([("image", (1, "8*h"), (1, 33))], None),
        ([("a", ("h",), (3,)), ("image", ("8*h",), (25,))], "image has size 25 on axis 0, expected 24"),
        ([("a", (4,), (5,))], "a has size 5 on axis 0, expected 4"),
        ([("a", ("h", "w"), (5,))], r"a has shape \[5\], expected 2 axes \[h, w\]"),
    ],
)
def test_a_contradiction_names_the_tensor_and_the_axis(shapes: list, said: str | None) -> None:
    if said is None:
        assert solve(shapes) == {}  # no size of h explains 33: nothing is known, the backend refuses the shape
        return
    with pytest.raises(DimensionError, match=said):
        solve(shapes)


@pytest.mark.parametrize(
    "text",
    ["", "h h", "h()", "__import__('os')", "h.w", "h**w", "h/2", "'a'", "1.5*h", "True*h", "[h]", "h if h else w"],
)
def test_what_is_no_expression_of_sizes_is_refused(text: str) -> None:
    assert not is_dimension(text)
    with pytest.raises(DimensionError):
        symbols(text)


@pytest.mark.parametrize("value", [0, -1, "3", "h*" * 150 + "h"])
def test_dimensions_are_positive_numbers_or_short_expressions_with_a_symbol(value: int | str) -> None:
    assert not is_dimension(value)


def test_division_by_zero_is_a_dimension_error() -> None:
    with pytest.raises(DimensionError, match="zero"):
        evaluate("h//w", {"h": 1, "w": 0})
