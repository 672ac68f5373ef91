"""Working memory that engines on one GPU share: those that never run at once use the same bytes.

Two kinds of use cannot overlap, whoever makes them: one run after another whose end was waited for, and runs enqueued
on the same stream. So memory is lent for the length of a run, or belongs to a stream.
"""

import functools
import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vexpress_trt.engines.driver import Driver, driver


@dataclass(eq=False)
class _Block:
    address: int
    size: int
    users: set[Hashable] = field(default_factory=set)


class Scratch:
    """Blocks of one GPU's memory. Methods may be called from any thread, with the GPU's context current."""

    def __init__(self, gpu: Driver) -> None:
        self._gpu = gpu
        self._lock = threading.Lock()
        self._idle: list[_Block] = []
        self._streams: dict[int, list[_Block]] = {}

    @contextmanager
    def lent(self, size: int) -> Iterator[int]:
        """The address of `size` bytes until the context is left, when nothing may use them any more."""
        with self._lock:
            block = next((block for block in self._idle if block.size >= size), None)
            if block is not None:
                self._idle.remove(block)
            else:
                self._drop_idle()  # too small ones make room
                block = _Block(self._gpu.mem_alloc(size), size)
        try:
            yield block.address
        finally:
            with self._lock:
                self._idle.append(block)

    def of_stream(self, stream: int, size: int, user: Hashable) -> int:
        """The address of `size` bytes for runs on a stream, the same for every user on it that they are enough for.

        It stays valid until `release` of that user: captured work has the address in it.
        """
        with self._lock:
            blocks = self._streams.setdefault(stream, [])
            block = next((block for block in blocks if block.size >= size), None)
            if block is None:
                block = _Block(self._gpu.mem_alloc(size), size)
                blocks.append(block)
            block.users.add(user)
            return block.address

    def release(self, user: Hashable) -> None:
        """Free what only this user had, and what is not lent at the moment. All its work must be done."""
        with self._lock:
            self._drop_idle()
            for stream, blocks in list(self._streams.items()):
                for block in blocks:
                    block.users.discard(user)
                    if not block.users:
                        self._gpu.mem_free(block.address)
                self._streams[stream] = [block for block in blocks if block.users]
                if not self._streams[stream]:
                    del self._streams[stream]

    def _drop_idle(self) -> None:
        for block in self._idle:
            self._gpu.mem_free(block.address)
        self._idle.clear()


@functools.cache
def scratch(gpu: int) -> Scratch:
    """The shared memory of the GPU of this number."""
    return Scratch(driver(gpu))
