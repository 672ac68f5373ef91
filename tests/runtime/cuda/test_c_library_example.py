"""The C library as a host uses it: installed alone, found by CMake or made part of a project, driven by the example."""

import re
import subprocess
from pathlib import Path
from shutil import which

import pytest

from vexpress_trt.engines.gpu import gpu_status

ROOT = Path(__file__).resolve().parents[3]
CUDA = ROOT / "runtime" / "native" / "cuda"
EXAMPLE = CUDA / "example"
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
HOST = """
cmake_minimum_required(VERSION 3.18)
project(host LANGUAGES {language})
add_subdirectory("{root}" vexpress_trt)
add_executable(host {source})
target_link_libraries(host PRIVATE vexpress::vexpress_cuda)
"""
VERSION = """
#include <stdio.h>
#include "vexpress_cuda.h"
int main(void) {
    puts(vexpress_cuda_version() == VEXPRESS_CUDA_VERSION ? "the same" : "another");
    return vexpress_cuda_version() == VEXPRESS_CUDA_VERSION ? 0 : 1;
}
"""


def call(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def require_tools() -> None:
    for tool in ("nvcc", "cmake"):
        if which(tool) is None:
            pytest.skip(f"no {tool} on the path")


def exported(library: Path) -> set[str]:
    symbols = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1] for line in symbols.splitlines()}


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library is installed, of all that CMake could build the only thing built; for GPUs from sm_80 on."""
    require_tools()
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
    versions = {f"lib/libvexpress_cuda.so{version}" for version in ("", ".0.1", ".0.1.0")}
    targets = {path for path in files if path.startswith("lib/cmake/vexpress_trt/vexpress_trt-targets")}
    assert len(package) == 2 and targets and files - package - targets == versions | {"include/vexpress_cuda.h"}


def test_the_library_shows_what_the_header_declares_alone(installed: Path) -> None:
    declared = set(re.findall(r"VEXPRESS_API [\w \*]*?(vexpress_\w+)\(", (CUDA / "vexpress_cuda.h").read_text()))
    assert exported(installed / "lib" / "libvexpress_cuda.so") == declared


@pytest.mark.parametrize("language", ["c99", "c11", "c17", "c++11", "c++17", "c++20"])
def test_the_header_is_c_and_cpp(installed: Path, tmp_path: Path, language: str) -> None:
    compiler, source = ("c++", tmp_path / "host.cpp") if "+" in language else ("cc", tmp_path / "host.c")
    source.write_text(VERSION)
    libraries = installed / "lib"
    linked = (f"-L{libraries}", "-lvexpress_cuda", f"-Wl,-rpath,{libraries}")
    call(compiler, f"-std={language}", *WARNINGS, f"-I{installed}/include", source, "-o", tmp_path / "host", *linked)
    assert call(tmp_path / "host") == "the same\n"


@pytest.mark.parametrize(
    ("shared", "configuration", "language"),
    [("ON", "Debug", "CXX"), ("OFF", "Release", "CXX"), ("OFF", "Release", "C")],
)
def test_a_project_takes_the_library_in(tmp_path: Path, shared: str, configuration: str, language: str) -> None:
    require_tools()
    source = "host.c" if language == "C" else "host.cpp"
    (tmp_path / "CMakeLists.txt").write_text(HOST.format(root=ROOT.as_posix(), language=language, source=source))
    (tmp_path / source).write_text(VERSION)
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    options = (f"-DBUILD_SHARED_LIBS={shared}", f"-DCMAKE_BUILD_TYPE={configuration}", "-DCMAKE_CUDA_ARCHITECTURES=80")
    call("cmake", "-S", tmp_path, "-B", build, *options)
    call("cmake", "--build", build)
    call(build / "host")
    call("cmake", "--install", build, "--prefix", prefix)
    call("cmake", "-S", EXAMPLE, "-B", tmp_path / "example", f"-DCMAKE_PREFIX_PATH={prefix}")
    call("cmake", "--build", tmp_path / "example")
    if shared == "ON":
        assert all(name.startswith("vexpress_") for name in exported(prefix / "lib" / "libvexpress_cuda.so"))


def test_a_package_of_another_version_is_refused(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(host NONE)\nfind_package(vexpress_trt 0.2 CONFIG)\n"
        'message(STATUS "found: ${vexpress_trt_FOUND}, seen: ${vexpress_trt_CONSIDERED_VERSIONS}")\n'
    )
    command = ("cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "found: 0, seen: 0.1.0" in said


def test_the_example_steps_a_window_or_says_why_not(installed: Path, tmp_path: Path) -> None:
    flags = f"-DCMAKE_CXX_FLAGS={' '.join(WARNINGS)}"
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
