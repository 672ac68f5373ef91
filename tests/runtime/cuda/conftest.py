"""A GPU to run kernels on, and the C library of the kernels."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest

from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.runtime.cuda.kernels import Kernels

# The C library's source is not part of an installed package.
NATIVE = Path(__file__).resolve().parents[3] / "runtime" / "native"
ARCHITECTURES = (80, 86, 89, 90, 120)


@pytest.fixture(scope="session")
def kernels() -> Iterator[Kernels]:
    """The kernels on GPU 0; tests skip where there is none."""
    if gpu_status().reason:
        pytest.skip(gpu_status().reason)
    with Kernels(0) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def kernel_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vexpress_cuda, compiled by nvcc for all targeted GPUs at once; tests skip where there is no nvcc."""
    compiler = which("nvcc")
    if compiler is None:
        pytest.skip("no nvcc on the path")
    library = tmp_path_factory.mktemp("nvcc") / "libvexpress_cuda.so"
    targets = [f"--generate-code=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
    result = subprocess.run(
        [compiler, "--std=c++17", "--fmad=false", "--shared", "--threads=2", *targets]
        + ["--compiler-options=-fPIC,-fvisibility=hidden,-Wall,-Werror", "--Werror=all-warnings"]
        + [f"--include-path={NATIVE}", f"--output-file={library}", str(NATIVE / "cuda" / "vexpress_cuda.cu")],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return library
