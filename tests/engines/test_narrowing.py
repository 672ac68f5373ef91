"""The tensor where an error begins, found among many in few looks."""

from collections.abc import Mapping, Sequence

import pytest

from vexpress_trt.engines.intermediates import Inner, spread
from vexpress_trt.engines.narrowing import Found, Narrowing

NEEDED = 40.0


def inner(name: str, *sources: str) -> Inner:
    return Inner(name, "float32", (1,), f"node/{name}", "Op", sources, frozenset({"x"}))


def chain(length: int) -> list[Inner]:
    """t0 of the input x, each further one of the one before."""
    return [inner("t0", "x")] + [inner(f"t{number}", f"t{number - 1}") for number in range(1, length)]


class Looks:
    """A graph with these dB, of which one look gives `room` tensors and always the outputs."""

    def __init__(self, decibels: Mapping[str, float], outputs: Sequence[str], room: int, fused: float | None = None):
        self.decibels, self.outputs, self.room = decibels, outputs, room
        self.asked: list[str] = []
        self.taken = 0
        self.wrong = {name: decibels[name] if fused is None else fused for name in outputs}

    def __call__(self, names: Sequence[str]) -> dict[str, float]:
        self.taken += 1
        self.asked += names
        return {name: self.decibels[name] for name in (*names, *self.outputs) if name in self.decibels}

    def search(self, graph: Sequence[Inner], comparable: set[str] | None = None) -> Narrowing:
        names = {tensor.name for tensor in graph} if comparable is None else comparable
        return Narrowing(graph, names, self.wrong, self, lambda tensors: spread(tensors, {}, 4 * self.room))


def wrong_from(graph: Sequence[Inner], first: int, level: float = 10.0) -> dict[str, float]:
    return {tensor.name: 90.0 if number < first else level for number, tensor in enumerate(graph)}


@pytest.mark.parametrize("first", [0, 1, 499, 998, 999])
@pytest.mark.parametrize(("room", "most"), [(1, 11), (9, 4), (31, 3), (1000, 1)])
def test_the_first_of_a_thousand_takes_few_looks_and_no_tensor_twice(first: int, room: int, most: int) -> None:
    graph = chain(1000)
    looks = Looks(wrong_from(graph, first), ["t999"], room)
    found = looks.search(graph).find(NEEDED)
    assert found == Found(graph[first], 10.0, 90.0 if first else 300.0)
    assert looks.taken <= most and len(set(looks.asked)) == len(looks.asked)


def test_a_branch_that_is_right_is_not_followed() -> None:
    left, right = inner("left", "x"), inner("right", "x")
    graph = [left, right, inner("far_left", "left"), inner("far_right", "right"), inner("y", "far_left", "far_right")]
    decibels = {"left": 80.0, "far_left": 70.0, "right": 20.0, "far_right": 15.0, "y": 12.0}
    found = Looks(decibels, ["y"], 1).search(graph).find(NEEDED)
    assert found == Found(right, 20.0, 300.0)


def test_what_the_wrong_output_does_not_depend_on_is_not_looked_at() -> None:
    graph = [inner("a", "x"), inner("b", "x"), inner("good", "a"), inner("bad", "b")]
    looks = Looks({"a": 5.0, "b": 90.0, "good": 90.0, "bad": 5.0}, ["good", "bad"], 9)
    looks.wrong = {"bad": 5.0}
    assert looks.search(graph).find(NEEDED) == Found(graph[3], 5.0, 90.0)
    assert "a" not in looks.asked


def test_tensors_that_cannot_be_compared_are_passed_through() -> None:
    graph = chain(10)
    looks = Looks(wrong_from(graph, 4), ["t9"], 2)
    search = looks.search(graph, {"t1", "t3", "t6", "t9"})
    assert search.find(NEEDED) == Found(graph[6], 10.0, 90.0)
    assert search.known.keys() <= {"t1", "t3", "t6", "t9"}


def test_a_tensor_that_a_look_does_not_give_counts_as_one_that_cannot_be_compared() -> None:
    graph = chain(10)
    decibels = wrong_from(graph, 4)
    del decibels["t4"]
    comparable = {tensor.name for tensor in graph}
    search = Looks(decibels, ["t9"], 3).search(graph, comparable)
    assert search.find(NEEDED) == Found(graph[5], 10.0, 90.0)
    assert "t4" not in comparable


def test_an_output_of_weights_alone_is_found_though_it_depends_on_nothing_else() -> None:
    constant = Inner("table", "float32", (1,), "node/table", "Sigmoid", ("w",), frozenset())
    looks = Looks({"t0": 90.0, "table": 10.0}, ["table"], 9)
    assert looks.search([*chain(1), constant]).find(NEEDED) == Found(constant, 10.0, 300.0)
    assert "t0" not in looks.asked


def test_of_a_wrong_output_that_no_node_computes_nothing_is_found() -> None:
    graph = chain(3)
    looks = Looks({**wrong_from(graph, 9), "w": 10.0}, ["w"], 9)
    assert looks.search(graph).find(NEEDED) is None and not looks.taken


def test_nothing_is_found_where_all_is_right_once_it_is_asked_for() -> None:
    graph = chain(50)
    looks = Looks(wrong_from(graph, 50), ["t49"], 7, fused=3.0)
    search = looks.search(graph)
    assert search.find(NEEDED) is None
    assert {"t47", "t48", "t49"} <= search.known.keys()
    assert len(search.known) < 20  # a right one speaks for those before


def test_rounding_that_piles_up_to_the_threshold_does_not_hide_a_fall_behind_it() -> None:
    graph = chain(20)
    decibels = {tensor.name: 60.0 - 2 * number for number, tensor in enumerate(graph)}  # below 40 from t11 on
    decibels |= {f"t{number}": 5.0 for number in range(15, 20)}
    found = Looks(decibels, ["t19"], 3).search(graph).find(NEEDED)
    assert found == Found(graph[15], 5.0, 32.0)


def test_where_rounding_is_all_there_is_the_first_below_the_threshold_is_named() -> None:
    graph = chain(20)
    decibels = {tensor.name: 60.0 - 2 * number for number, tensor in enumerate(graph)}
    found = Looks(decibels, ["t19"], 3).search(graph).find(NEEDED)
    assert found == Found(graph[11], 38.0, 40.0)
