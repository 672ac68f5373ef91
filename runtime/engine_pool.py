"""Which engine runs a graph, loaded when first needed and freed when no longer."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.engine import Engine, load_engine
from vexpress_trt.engines.selection import EngineChoice
from vexpress_trt.runtime.summary import Stopwatch


class EnginePool:
    """Engines of one bundle under one choice of backend, precision and dtype.

    With `frugal`, a graph is freed as soon as the stage that uses it is done, so that only one stage's weights are in
    memory at a time.
    """

    def __init__(
        self,
        bundle: Bundle,
        choice: EngineChoice,
        watch: Stopwatch,
        *,
        threads: int | None = None,
        frugal: bool = False,
    ) -> None:
        self.bundle = bundle
        self.choice = choice
        self._watch = watch
        self._threads = threads
        self._frugal = frugal
        self._engines: dict[str, Engine] = {}

    @contextmanager
    def use(self, graph: str) -> Iterator[Engine]:
        """The engine of a graph, for the length of a stage."""
        engine = self._engines.get(graph)
        if engine is None:
            with self._watch.stage("load engines"):
                engine = load_engine(
                    self.bundle,
                    graph,
                    backend=self.choice.backend,
                    precision=self.choice.precision,
                    threads=self._threads,
                    dtype=self.choice.dtype,
                )
            self._engines[graph] = engine
        try:
            yield engine
        finally:
            if self._frugal:
                self._engines.pop(graph).close()

    def close(self) -> None:
        """Free all engines."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
