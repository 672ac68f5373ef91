"""Which engine runs a graph, loaded when a stage needs it and freed when that stage is done."""

from collections.abc import Iterator
from contextlib import contextmanager

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.engine import Engine, load_engine
from vexpress_trt.engines.selection import EngineChoice
from vexpress_trt.runtime.summary import Stopwatch


class EngineLoader:
    """Engines of one bundle under one choice of backend, precision and dtype.

    A clip uses each graph in one stage only, so nothing is kept: weights and scratch memory of a stage are gone before
    the next one starts.
    """

    def __init__(self, bundle: Bundle, choice: EngineChoice, watch: Stopwatch, *, threads: int | None = None) -> None:
        self.bundle = bundle
        self.choice = choice
        self._watch = watch
        self._threads = threads
        self._in_use: set[Engine] = set()
        self._cancelled = False

    @contextmanager
    def use(self, graph: str) -> Iterator[Engine]:
        """The engine of a graph, for the length of a stage."""
        with self._watch.stage("load engines"):
            engine = load_engine(
                self.bundle,
                graph,
                backend=self.choice.backend,
                precision=self.choice.precision,
                threads=self._threads,
                dtype=self.choice.dtype,
            )
        self._in_use.add(engine)
        try:
            if self._cancelled:  # while it was loading
                engine.cancel()
            with engine:
                yield engine
        finally:
            self._in_use.discard(engine)

    def cancel(self) -> None:
        """From another thread: end what the engines are doing."""
        self._cancelled = True
        for engine in tuple(self._in_use):
            engine.cancel()
