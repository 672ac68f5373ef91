"""Growth of the GPU's memory over a run, as the GPU check tells it."""

import pytest

from vexpress_trt.bench.gpu_check import memory
from vexpress_trt.bench.gpu_check.memory import MemoryWatch


def test_memory_that_grows_is_told_from_what_is_allocated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for seen, growth in (([100, 300, *[300] * 8], 0), ([*range(100, 180, 10), 180], 70), ([], 0)):
        watch, left = MemoryWatch(), iter(map(float, seen))
        monkeypatch.setattr(memory, "used_mib", lambda left=left: next(left))
        for _ in seen:
            watch.look()
        assert watch.growth == growth
        assert watch.found()["memory_in_use_mib"] == seen
