"""A clip's budget of GPU memory, divided among its engines as they are loaded and freed."""

import threading
from dataclasses import replace

from vexpress_trt.engines.engine import Engine
from vexpress_trt.runtime.cuda.budget import CONTEXT, EngineNeed, GpuNeed, working_bytes


class Shares:
    """What each engine of a clip may take: the budget without CUDA, our buffers and arrays that engines keep.

    An engine may have what is left when those that are loaded keep what they have, and those of the loop that are still
    to come get what they need. Weights that may stream get less where the budget is short, the largest first. Engines
    that do not tell what they took (onnxruntime's) have fixed parts of the whole instead. Methods may be called from
    any thread.
    """

    def __init__(self, budget: int, need: GpuNeed) -> None:
        """`need` has been found to fit `budget` bytes."""
        self._lock = threading.Lock()
        kept = sum(engine.kept for engine in need.engines)
        self._room = budget - need.buffers - kept - CONTEXT
        self._planned = {engine.graph: engine for engine in _cut_down(need.engines, self._room)}
        self._loaded: dict[str, EngineNeed] = {}

    def of(self, graph: str, *, told: bool) -> int:
        """Bytes for the engine of a graph that is about to be loaded; `told`: whether it will tell what it took."""
        with self._lock:
            own = self._planned.get(graph)
            if not told:
                return self._room if own is None else self._part(own)
            others = {**(self._planned if own is not None else {}), **self._loaded}
            others.pop(graph, None)
            left = self._room - sum(other.weights for other in others.values())
            turn = own.turn if own is not None else graph
            left -= working_bytes((other.turn, other.working) for other in others.values() if other.turn != turn)
            in_turn = max((other.working for other in others.values() if other.turn == turn), default=0)
            return left - max(0, in_turn - (own.working if own is not None else 0))

    def loaded(self, graph: str, engine: Engine) -> None:
        """The engine of a graph is there."""
        with self._lock:
            planned = self._planned.get(graph, EngineNeed(graph, graph, 0, 0))
            taken = engine.gpu_bytes
            if taken is not None:
                planned = replace(planned, weights=taken[0], working=taken[1])
            self._loaded[graph] = planned

    def freed(self, graph: str) -> None:
        """The engine of a graph is gone."""
        with self._lock:
            self._loaded.pop(graph, None)

    def _part(self, own: EngineNeed) -> int:
        return self._room * (own.weights + own.working) // sum(e.weights + e.working for e in self._planned.values())


def _cut_down(engines: tuple[EngineNeed, ...], room: int) -> tuple[EngineNeed, ...]:
    """The needs, with weights that may stream made to fit the room."""
    working = working_bytes((engine.turn, engine.working) for engine in engines)
    fixed = sum(engine.weights for engine in engines if not engine.streamable)
    most = _level([engine.weights for engine in engines if engine.streamable], max(0, room - fixed - working))
    return tuple(replace(e, weights=min(e.weights, most)) if e.streamable else e for e in engines)


def _level(sizes: list[int], room: int) -> int:
    """The most that any of them may have, so that all together fit."""
    for number, size in enumerate(sorted(sizes)):
        most = room // (len(sizes) - number)
        if size > most:
            return most
        room -= size
    return max(sizes, default=0)
