"""Engines that stay loaded from one clip to the next, for processes that make many."""

import threading
from typing import Any

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.closing import Closing
from vexpress_trt.engines.engine import Engine
from vexpress_trt.engines.selection import EngineChoice

Key = tuple[Any, ...]


class EnginePool(Closing):
    """Loaded engines that no clip uses at the moment, one for each graph: the last that was given.

    Hand it to `generate` or `write_video`, one clip at a time: what the clip needs is taken from here where it fits
    (same graph and weights by hash, same choice of backend and type, same threads) and comes back when its stage is
    done. The frames are those of freshly loaded engines bit for bit. All stages' weights lie in memory side by side,
    which `save_gpu_memory` of a request forbids, and on a GPU `gpu_memory`, whose shares are counted anew for
    each clip: such a clip frees what waits here before it loads anything, and neither takes from here nor leaves
    anything. A clip that fails frees the engines that it was using and those that wait; one that is left frees those
    whose run was broken off.

    Close it, or use it as a context manager, to free the engines.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: dict[str, tuple[Key, Engine]] = {}
        self._closed = False

    def take(self, key: Key) -> Engine | None:
        """The engine of this key, which is the caller's now; None where none waits. Frees another one of its graph, and
        one whose cancelling came after it was given."""
        with self._lock:
            found, engine = self._engines.pop(key[0], (key, None))
        if engine is not None and (found != key or engine.cancelled):
            engine.close()
            return None
        return engine

    def give(self, key: Key, engine: Engine) -> None:
        """Keep an engine that nobody uses, in place of another one of its graph; closes it where it was cancelled."""
        engine.renew()
        surplus = engine
        with self._lock:
            if not engine.cancelled and not self._closed:
                _, surplus = self._engines.pop(key[0], (key, None))
                self._engines[key[0]] = (key, engine)
        if surplus is not None:
            surplus.close()

    def clear(self) -> None:
        """Free the engines that wait."""
        with self._lock:
            engines = list(self._engines.values())
            self._engines.clear()
        for _, engine in engines:
            engine.close()

    def __len__(self) -> int:
        return len(self._engines)

    def close(self) -> None:
        """Free all engines; what is given back later is freed then."""
        with self._lock:
            self._closed = True
        self.clear()


def engine_key(bundle: Bundle, graph: str, choice: EngineChoice, threads: int | None) -> Key:
    """The graph's name, and what else tells engines that compute it apart.

    Raises UserError where the bundle does not have the graph in the chosen precision.
    """
    hashes = tuple(bundle.manifest.files[file].sha256 for file in sorted(bundle.graph(graph, choice.precision).files))
    return (graph, hashes, choice.backend, choice.precision, choice.dtype, threads)
