"""Which engine runs a graph, loaded when a stage needs it, or ahead of that, and freed when that stage is done."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.closing import Closing
from vexpress_trt.engines.engine import CancelledError, Engine, load_engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.selection import EngineChoice
from vexpress_trt.runtime.engine_pool import EnginePool, Key, engine_key
from vexpress_trt.runtime.summary import Stopwatch

if TYPE_CHECKING:
    from vexpress_trt.runtime.cuda.shares import Shares


class EngineLoader(Closing):
    """Engines of one bundle under one choice of backend, precision and dtype.

    A clip uses each graph in one stage only, so nothing is kept: weights and scratch memory of a stage are gone before
    the next one starts. What is loaded ahead with `prefetch` lies in memory beside the stages before it. Leaving the
    context frees what was loaded ahead and never used, and what a stage that was broken off still had.

    With a `pool`, engines come from there and go back instead, for the next clip; never together with `shares`, which
    give each engine its part of a limited GPU memory. What waits there is freed where an engine cannot be loaded beside
    it, and where a stage fails: it may have had the memory that was missing. `look` is called when an engine has done
    its work and is still loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        choice: EngineChoice,
        watch: Stopwatch,
        *,
        threads: int | None = None,
        pool: EnginePool | None = None,
        shares: "Shares | None" = None,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """Raises ValueError for a pool with shares: what is kept there was loaded without a limit."""
        if pool is not None and shares is not None:
            raise ValueError("engines of a pool were loaded without a limit")
        self.bundle = bundle
        self.choice = choice
        self._watch = watch
        self._threads = threads
        self._pool = pool
        self._shares = shares
        self._look = look
        self._in_use: set[Engine] = set()
        self._ahead: dict[str, Future[Engine]] = {}
        self._background = ThreadPoolExecutor(1, thread_name_prefix="load-engine")
        self._cancelled = False

    def prefetch(self, graph: str, **sizes: int) -> None:
        """Begin to load the engine of a graph on another thread, ready for inputs of these symbols' sizes."""
        self._ahead[graph] = self._background.submit(self._load, graph, sizes)

    @contextmanager
    def use(self, graph: str) -> Iterator[Engine]:
        """The engine of a graph, for the length of a stage."""
        with self._watch.stage("load engines"):
            coming = self._ahead.pop(graph, None)
            engine = self._load(graph, {}) if coming is None else coming.result()
        self._in_use.add(engine)
        try:
            if self._cancelled:  # while it was loading
                engine.cancel()
            yield engine
            self._look()
        except (CancelledError, GeneratorExit):  # nothing is wrong with the engine
            with contextlib.suppress(Exception):
                self._put_away(graph, engine)
            raise
        except BaseException:
            self._give_up(graph, engine)
            raise
        else:
            self._put_away(graph, engine)
        finally:
            self._in_use.discard(engine)

    def cancel(self) -> None:
        """From another thread: end what the engines are doing."""
        self._cancelled = True
        for engine in tuple(self._in_use):
            engine.cancel()

    def close(self) -> None:
        """Free what stages have left in use, and what was loaded ahead in vain; waits for a load in progress."""
        for engine in tuple(self._in_use):
            engine.close()
        for graph, coming in self._ahead.items():
            if not coming.cancel():
                with contextlib.suppress(Exception):  # whoever needed the engine would have been told
                    self._put_away(graph, coming.result())
        self._ahead.clear()
        self._background.shutdown()

    def _put_away(self, graph: str, engine: Engine) -> None:
        if self._pool is None:
            self._free(graph, engine)
        else:
            self._pool.give(self._key(graph), engine)

    def _give_up(self, graph: str, engine: Engine) -> None:
        with contextlib.suppress(Exception):  # after a fault of the GPU freeing fails as well: the first is told
            self._free(graph, engine)
            self._free_idle()

    def _free_idle(self) -> None:
        if self._pool is not None:
            self._pool.clear()

    def _free(self, graph: str, engine: Engine) -> None:
        engine.close()
        if self._shares is not None:
            self._shares.freed(graph)

    def _load(self, graph: str, sizes: dict[str, int]) -> Engine:
        kept = None if self._pool is None else self._pool.take(self._key(graph))
        engine = kept or self._loaded(graph)
        if self._shares is not None:
            self._shares.loaded(graph, engine)
        try:
            if sizes:
                engine.prepare(**sizes)
        except BaseException:
            self._give_up(graph, engine)
            raise
        return engine

    def _loaded(self, graph: str) -> Engine:
        if self._pool:
            with contextlib.suppress(UserError):  # whose traceback has what was loaded of it, until here
                return self._fresh(graph)
            self._free_idle()
        return self._fresh(graph)

    def _fresh(self, graph: str) -> Engine:
        return load_engine(
            self.bundle,
            graph,
            backend=self.choice.backend,
            precision=self.choice.precision,
            threads=self._threads,
            dtype=self.choice.dtype,
            gpu_memory=None if self._shares is None else self._shares.of(graph, told=self.choice.planned),
        )

    def _key(self, graph: str) -> Key:
        return engine_key(self.bundle, graph, self.choice, self._threads)
