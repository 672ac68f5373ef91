"""What is on the GPU is looked at between stages, and a budget is never exceeded without a word."""

from types import SimpleNamespace

import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.cuda import memory_watch
from vexpress_trt.runtime.cuda.memory_watch import MemoryWatch

GIB = 1 << 30


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the next looks will find."""
    sizes: list[int] = []
    memory = SimpleNamespace(used=lambda: sizes.pop(0), exact=True)
    monkeypatch.setattr(memory_watch.GpuMemory, "of", lambda gpu: memory)
    return sizes


def test_the_most_that_was_seen_is_the_peak(seen: list[int], caplog: pytest.LogCaptureFixture) -> None:
    watch = MemoryWatch(0, None)
    assert watch.peak is None
    seen += [GIB, 3 * GIB, 2 * GIB]
    for _ in range(3):
        watch.look()
    assert watch.peak == 3 * GIB and not caplog.text


def test_more_than_the_budget_is_told_once_with_both_figures(seen: list[int], caplog: pytest.LogCaptureFixture) -> None:
    watch = MemoryWatch(0, 2 * GIB)
    seen += [2 * GIB, 3 * GIB, 4 * GIB]
    watch.look()
    assert not caplog.text
    watch.look()
    watch.look()
    assert [record.getMessage() for record in caplog.records] == [
        "--gpu_memory is exceeded: this process has 3.0 GiB on the GPU, 2.0 GiB were allowed"
    ]


def test_where_there_is_no_driver_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_watch.GpuMemory, "of", lambda gpu: None)
    watch = MemoryWatch(0, GIB)
    watch.look()
    assert watch.peak is None


def test_figures_that_count_other_programs_too_are_told_as_such(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = SimpleNamespace(used=lambda: 3 * GIB, exact=False)
    monkeypatch.setattr(memory_watch.GpuMemory, "of", lambda gpu: memory)
    MemoryWatch(0, 2 * GIB).look()
    assert "has 3.0 GiB on the GPU, by what is gone of its free memory, 2.0 GiB were allowed" in caplog.text


def test_a_driver_that_answers_nothing_more_leaves_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [GIB]

    def used() -> int:
        if not answers:
            raise UserError("the NVIDIA driver reports a fault")
        return answers.pop()

    monkeypatch.setattr(memory_watch.GpuMemory, "of", lambda gpu: SimpleNamespace(used=used, exact=True))
    watch = MemoryWatch(0, None)
    watch.look()
    watch.look()
    assert watch.peak == GIB
