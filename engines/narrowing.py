"""From a wrong output to the tensor where the error begins, in as few looks as memory allows.

A look runs a graph with some of its tensors as further outputs, and may need an engine to be built. So tensors are not
asked for in order: what the wrong output depends on is looked at as densely as memory allows, evenly over the order of
the nodes; then what the first wrong one of these depends on, up to tensors that are right. k tensors a look leave about
1/(k+1) of the candidates, where a binary search would leave half: one look where all fit, else the logarithm to the
base k + 1, and never a tensor twice.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from vexpress_trt.engines.intermediates import Inner

# Rounding piles up from node to node, by less than this at one of them; in a deep graph it can pass a threshold.
_FALL_DB = 10.0
EQUAL_DB = 300.0  # of tensors without a difference, as weights and inputs are

Look = Callable[[Sequence[str]], Mapping[str, float]]  # {tensor: dB} of these and the graph's outputs
Choice = Callable[[Sequence[Inner]], Sequence[Inner]]  # some of these, at least one, for one look


@dataclass(frozen=True)
class Found:
    """A tensor that is wrong, in dB; `before_db` is the worst of the nearest compared ones that it depends on, which
    are right. It is 300 where there are none."""

    tensor: Inner
    decibels: float
    before_db: float

    @property
    def is_a_fall(self) -> bool:
        """Whether one node, or a few that could not be compared, made it so."""
        return self.before_db - self.decibels >= _FALL_DB


class Narrowing:
    """The search in one graph. `known`: {tensor: dB} of all that was looked at.

    `graph` has all tensors in the order of the nodes. `comparable` are the names of those that can be looked at; the
    ones that a look does not give are removed. The `wrong` ones are outputs, with their dB; of one that is not in
    `graph`, as no node computes it, nothing can be found.
    """

    def __init__(
        self, graph: Sequence[Inner], comparable: set[str], wrong: Mapping[str, float], look: Look, choose: Choice
    ) -> None:
        self.known: dict[str, float] = {}
        self._graph, self._comparable, self._look, self._choose = graph, comparable, look, choose
        self._by_name = {tensor.name: tensor for tensor in graph}
        self._wrong = wrong

    def find(self, needed: float) -> Found | None:
        """The first tensor below `needed` dB that the wrong outputs depend on; None where no tensor is, now that it is
        asked for.

        Where that one is not much worse than what is before it, though the outputs are, a later one that is.
        """
        first = found = self._below(needed)
        while found is not None and not found.is_a_fall:
            lower = found.decibels - _FALL_DB
            found = self._below(lower) if lower > min(self._wrong.values()) else None
        return found or first

    def _below(self, needed: float) -> Found | None:
        """The tensor below `needed` dB with nothing below it in front."""
        first: Inner | None = None
        ends = [*self._wrong]
        ends += [source for name in self._wrong if name in self._by_name for source in self._by_name[name].sources]
        while True:
            near = self._behind(ends, lambda name: self.known.get(name, -math.inf) < needed)
            worse = next((tensor for tensor in near if self.known.get(tensor.name, math.inf) < needed), None)
            unknown = [tensor for tensor in near if tensor.name not in self.known]
            if worse is not None:
                first, ends = worse, worse.sources
            elif unknown:
                self._learn(self._choose(unknown))
            else:
                break
        if first is None:
            return None
        before = [self.known[tensor.name] for tensor in self._behind(first.sources, lambda name: False)]
        return Found(first, self.known[first.name], min(before, default=EQUAL_DB))

    def _behind(self, names: Iterable[str], passed: Callable[[str], bool]) -> list[Inner]:
        """The comparable tensors among these and those that they depend on, in order; what is behind one of them only
        where it is `passed`."""
        seen: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in seen and name in self._by_name:
                seen.add(name)
                if name not in self._comparable or passed(name):
                    todo += self._by_name[name].sources
        seen &= self._comparable
        return [tensor for tensor in self._graph if tensor.name in seen]

    def _learn(self, tensors: Sequence[Inner]) -> None:
        names = [tensor.name for tensor in tensors]
        given = self._look(names)
        self._comparable -= set(names) - given.keys()
        self.known |= {name: decibels for name, decibels in given.items() if name in self._comparable}
