"""The C library as a host uses it: installed alone, found by CMake, and driven by the example."""

import subprocess
from pathlib import Path
from shutil import which

import pytest

from vexpress_trt.engines.gpu import gpu_status

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "runtime" / "native" / "cuda" / "example"


def call(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library is installed, of all that CMake could build the only thing built; for GPUs from sm_80 on."""
    for tool in ("nvcc", "cmake"):
        if which(tool) is None:
            pytest.skip(f"no {tool} on the path")
    build, prefix = (tmp_path_factory.mktemp(name) for name in ("build", "prefix"))
    call("cmake", "-S", ROOT, "-B", build, "-DVEXPRESS_PYTHON=OFF", "-DCMAKE_CUDA_ARCHITECTURES=80")
    call("cmake", "--install", build, "--prefix", prefix / "nothing")
    call("cmake", "--build", build, "--target", "vexpress_cuda")
    call("cmake", "--install", build, "--prefix", prefix / "all")
    call("cmake", "--install", build, "--prefix", prefix / "alone", "--component", "vexpress_cuda")
    return prefix / "alone"


def test_what_was_not_built_leaves_no_header_or_package(installed: Path) -> None:
    assert not files_below(installed.parent / "nothing")
    assert files_below(installed.parent / "all") == files_below(installed)


def test_the_component_is_library_header_and_package_alone(installed: Path) -> None:
    files = files_below(installed)
    package = {path for path in files if path.startswith("lib/cmake/vexpress_trt/vexpress_trt-config")}
    assert package and files - package == {"lib/libvexpress_cuda.so", "include/vexpress_cuda.h"}


def test_the_example_steps_a_window_or_says_why_not(installed: Path, tmp_path: Path) -> None:
    flags = "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wpedantic -Werror"
    call("cmake", "-S", EXAMPLE, "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={installed}", flags)
    call("cmake", "--build", tmp_path)
    ran = subprocess.run([tmp_path / "denoising_step"], capture_output=True, text=True, check=False)
    if gpu_status().reason:
        assert ran.returncode == 1 and not ran.stdout
        assert ran.stderr.startswith(
            (
                "cudaGetDeviceCount: error 35, CUDA driver version is insufficient",
                "cudaGetDeviceCount: error 100, no CUDA",
            )
        )
    else:
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout == "2 frames stepped, one image in bytes, all as expected\n"
