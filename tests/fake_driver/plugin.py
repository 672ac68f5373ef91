"""A pytest plugin for a process that has the stand-in as its driver: every test runs under several orders of work."""

import gc
from collections.abc import Iterator

import pytest
from fake_driver.stand_in import StandIn

from vexpress_trt.engines.driver import driver

_ONE = StandIn()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--orders", type=int, default=1, help="how many orders of the streams' work to try")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("order", range(metafunc.config.getoption("orders")), scope="function")


def pytest_collection_finish() -> None:
    gc.freeze()  # modules are not searched for garbage after each test


@pytest.fixture
def order(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(autouse=True)
def stand_in(order: int) -> Iterator[StandIn]:
    """Fails the test where the driver refused something, work of a stream failed, or something is left.

    What a test provokes it takes out of the report itself.
    """
    _ONE.seed(order)
    before = _left(_ONE.report()[1])
    yield _ONE
    gc.collect()
    for gpu in map(driver, range(2)):  # streams that wait for the next clip
        with gpu.current():
            while gpu.idle_streams:
                gpu.stream_destroy(gpu.idle_streams.pop())
    refused, left = _ONE.report()
    problems = StandIn.problems.copy()
    StandIn.problems.clear()
    assert not problems
    assert not refused
    assert _left(left) == before


def _left(lines: list[str]) -> list[str]:
    """Without contexts and kernels: each GPU's stay for as long as the process lives."""
    return [line for line in lines if "retains" not in line and "modules" not in line]
