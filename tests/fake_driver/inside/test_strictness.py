"""The stand-in refuses and reports what a GPU would make one suffer for."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver
from fake_driver.stand_in import StandIn, array_at

SIZE = 1000
ORDERS = range(50)


def code_of(function: str, *arguments: Any) -> str:
    return getattr(driver, function)(*arguments)[0].name


def given(function: str, *arguments: Any) -> Any:
    code, *values = getattr(driver, function)(*arguments)
    assert code == driver.CUresult.CUDA_SUCCESS, f"{function}: {code.name}"
    return values[0] if values else None


@pytest.fixture(params=[0, 1])
def context(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A GPU's context, current."""
    given("cuInit", 0)
    made = given("cuDevicePrimaryCtxRetain", request.param)
    given("cuCtxPushCurrent", made)
    yield made
    given("cuCtxPopCurrent")
    given("cuDevicePrimaryCtxRelease", request.param)


@pytest.fixture
def stream(context: Any) -> Iterator[Any]:
    made = given("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
    yield made
    given("cuStreamDestroy", made)


@pytest.fixture
def memory(context: Any) -> Iterator[int]:
    """The address of SIZE bytes."""
    made = given("cuMemAlloc", SIZE)
    yield int(made)
    given("cuMemFree", made)


@pytest.fixture
def pinned(context: Any) -> Iterator[int]:
    made = given("cuMemHostAlloc", SIZE, 0)
    yield int(made)
    given("cuMemFreeHost", made)


def at(address: int) -> np.ndarray:
    return array_at(address, (SIZE,), np.dtype(np.uint8))


def test_memory_starts_as_nan_and_its_size_is_counted(memory: int, stand_in: StandIn) -> None:
    assert np.isnan(at(memory).view(np.float32)).all()
    stand_in.limit_memory(5000)
    assert driver.cuMemGetInfo()[1:] == (4000, 5000)
    assert code_of("cuMemAlloc", 4001) == "CUDA_ERROR_OUT_OF_MEMORY"
    stand_in.limit_memory(8 << 30)


def test_nothing_works_without_a_current_context(stand_in: StandIn) -> None:
    given("cuInit", 0)
    for function, *arguments in (("cuMemAlloc", 8), ("cuStreamCreate", 1), ("cuEventCreate", 0), ("cuCtxPopCurrent",)):
        assert code_of(function, *arguments) == "CUDA_ERROR_INVALID_CONTEXT"
    assert len(stand_in.report()[0]) == 4


def test_copies_stay_within_an_allocation(memory: int, pinned: int, stream: Any, stand_in: StandIn) -> None:
    for target, source, size in ((memory + 1, pinned, SIZE), (memory, pinned + 1, SIZE), (pinned, pinned, 8)):
        assert code_of("cuMemcpyHtoDAsync", target, source, size, stream) == "CUDA_ERROR_INVALID_VALUE"
    assert len(stand_in.report()[0]) == 3


def test_what_belongs_to_another_gpu_is_refused(memory: int, stream: Any, context: Any, stand_in: StandIn) -> None:
    other = 1 - int(given("cuCtxGetDevice"))
    given("cuCtxPushCurrent", given("cuDevicePrimaryCtxRetain", other))
    theirs = given("cuStreamCreate", 1)
    assert code_of("cuMemsetD8Async", memory, 0, SIZE, theirs) == "CUDA_ERROR_INVALID_VALUE"
    assert code_of("cuStreamSynchronize", stream) == "CUDA_ERROR_INVALID_HANDLE"
    given("cuStreamDestroy", theirs)
    given("cuCtxPopCurrent")
    given("cuDevicePrimaryCtxRelease", other)
    assert stand_in.report()[0] == [
        "cuMemsetD8Async: memory of another GPU", "cuStreamSynchronize: a stream of another GPU"
    ]  # fmt: skip


def test_freed_memory_is_nobodys_and_what_is_left_is_told(context: Any, stream: Any, stand_in: StandIn) -> None:
    memory = given("cuMemAlloc", SIZE)
    assert f"left: 1 allocations of GPU {int(given('cuCtxGetDevice'))}" in stand_in.report()[1]
    given("cuMemFree", memory)
    for function, *arguments in (("cuMemFree", memory), ("cuMemsetD8Async", int(memory), 0, 1, stream)):
        assert code_of(function, *arguments) == "CUDA_ERROR_INVALID_VALUE"
    assert len(stand_in.report()[0]) == 2


def test_a_write_behind_an_allocation_is_told_when_it_is_freed(context: Any, stand_in: StandIn) -> None:
    memory = given("cuMemAlloc", SIZE)
    at(int(memory) + 1)[SIZE - 1] = 0
    assert code_of("cuMemFree", memory) == "CUDA_ERROR_INVALID_VALUE"
    assert stand_in.report()[0] == ["cuMemFree_v2: was written to before its start or behind its end"]


def test_streams_go_their_own_ways_unless_an_event_orders_them(
    memory: int, pinned: int, stream: Any, stand_in: StandIn
) -> None:
    second, event = given("cuStreamCreate", 1), given("cuEventCreate", 2)
    seen = {}
    for ordered in (False, True):
        seen[ordered] = set()
        for number in ORDERS:
            stand_in.seed(number)
            at(pinned)[:] = number
            given("cuMemcpyHtoDAsync", memory, pinned, SIZE, stream)
            given("cuEventRecord", event, stream)
            if ordered:
                given("cuStreamWaitEvent", second, event, 0)
            given("cuMemcpyDtoHAsync", pinned, memory, 1, second)
            given("cuCtxSynchronize")
            seen[ordered].add(int(at(pinned)[0]) - number)
    assert seen[True] == {0} and len(seen[False]) > 1
    given("cuEventDestroy", event)
    given("cuStreamDestroy", second)


def test_a_copy_reads_pinned_memory_when_it_runs(memory: int, pinned: int, stream: Any, stand_in: StandIn) -> None:
    seen = set()
    for number in ORDERS:
        stand_in.seed(number)
        at(pinned)[:] = 1
        given("cuMemcpyHtoDAsync", memory, pinned, SIZE, stream)
        at(pinned)[:] = 2
        given("cuStreamSynchronize", stream)
        seen.add(int(at(memory)[0]))
    assert seen == {1, 2}


def test_work_that_fails_is_told_whoever_enqueued_it(stream: Any) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    StandIn().enqueue(int(stream), fail)
    given("cuStreamSynchronize", stream)
    assert [type(problem) for problem in StandIn.problems] == [ZeroDivisionError]
    StandIn.problems.clear()


def test_a_capture_is_void_after_a_call_that_waits(memory: int, stream: Any, stand_in: StandIn) -> None:
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    for function, *arguments in (("cuMemAlloc", 8), ("cuStreamSynchronize", stream), ("cuMemcpyHtoD", memory, 0, 1)):
        given("cuStreamBeginCapture", stream, mode)
        assert code_of(function, *arguments) == "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
        assert code_of("cuStreamEndCapture", stream) == "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
    assert len(stand_in.report()[0]) == 6


def test_captured_work_runs_when_it_is_launched(memory: int, stream: Any) -> None:
    mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
    given("cuStreamBeginCapture", stream, mode)
    given("cuMemsetD8Async", memory, 5, SIZE, stream)
    graph = given("cuStreamEndCapture", stream)
    executable = given("cuGraphInstantiate", graph, 0)
    given("cuGraphDestroy", graph)
    given("cuCtxSynchronize")
    assert (at(memory) == 0xFF).all()
    given("cuGraphLaunch", executable, stream)
    given("cuStreamSynchronize", stream)
    assert (at(memory) == 5).all()
    given("cuGraphExecDestroy", executable)
