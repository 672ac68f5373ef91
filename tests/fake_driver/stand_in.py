"""The stand-in of the CUDA driver, from Python: built with g++, and asked what it saw by tests that run on it."""

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import which

import numpy as np
import pytest

from vexpress_trt.runtime.cuda.nvrtc import KERNELS

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "runtime" / "native"
LIBRARY = "libcuda.so.1"


def build(folder: Path) -> Path:
    """Compile it into `folder`; tests skip where there is no compiler. Takes some seconds."""
    compiler = which("g++")
    if compiler is None:
        pytest.skip("no g++ on the path")
    library = folder / LIBRARY
    listed = "".join(f"K(vx_{name})" for name in KERNELS)
    # As with nvcc, products and sums are rounded one by one; an address that is not aligned as its type traps.
    options = ["-std=c++20", "-O2", "-ffp-contract=off", "-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"]
    linking = ["-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-Bsymbolic", f"-Wl,-soname,{LIBRARY}"]
    given = [f"-DVX_STAND_IN_KERNELS={listed}", "-I", str(NATIVE), "-x", "c++", "-", "-o", str(library)]
    whole = "".join(f'#include "{path}"\n' for path in sorted(HERE.glob("*.cpp")))  # at once takes half the time
    result = subprocess.run(
        [compiler, "-Wall", "-Wextra", "-Werror", *options, *linking, *given],
        input=whole, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return library


class StandIn:
    """The library of this process."""

    problems: list[BaseException] = []  # of work that any of them enqueued

    def __init__(self) -> None:
        """Raises OSError or AttributeError where the process has another driver or none."""
        self._library = ctypes.CDLL(LIBRARY)
        self._library.stand_in_report.restype = ctypes.c_char_p
        self._library.stand_in_count.restype = ctypes.c_long
        self._functions: list[object] = []  # captured work calls them at any time

    def seed(self, number: int) -> None:
        """Which of the orders that a GPU might choose work runs in from now on."""
        self._library.stand_in_seed(ctypes.c_uint64(number))

    def limit_memory(self, size: int) -> None:
        """Bytes of memory that each GPU has."""
        self._library.stand_in_memory(ctypes.c_size_t(size))

    def recover(self) -> None:
        """After a fault of work, with which every call answers from then on: go on as a new process would."""
        self._library.stand_in_recover()

    def count(self, function: str) -> int:
        """How often a function of the driver was called, such as "cuStreamSynchronize"; or "pageable copies"."""
        return self._library.stand_in_count(function.encode())

    def report(self) -> tuple[list[str], list[str]]:
        """What was refused or failed since the last report, and what exists, a sentence each. Runs all that waits."""
        lines = self._library.stand_in_report().decode().splitlines()
        return [line for line in lines if not line.startswith("left: ")], [
            line for line in lines if line.startswith("left: ")
        ]

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Let a Python function be work of a stream, as an engine's kernels are."""

        def called(_: object) -> None:
            try:
                work()
            except BaseException as problem:  # nobody is above this
                self.problems.append(problem)

        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(called)
        self._functions.append(function)
        code = self._library.cuLaunchHostFunc(ctypes.c_void_p(stream), function, None)
        assert code == 0, f"CUDA error {code}: {self.report()}"


def array_at(address: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The stand-in's memory as an array, for work that runs on it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)


def here() -> StandIn | None:
    """The stand-in, where this process has it as its driver."""
    try:
        return StandIn()
    except (OSError, AttributeError):
        return None
