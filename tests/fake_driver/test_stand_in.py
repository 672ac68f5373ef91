"""Everything above the driver of an NVIDIA GPU runs on a stand-in of that driver, through the real cuda-bindings.

The stand-in (driver.cpp) is a libcuda.so.1 on the CPU, which a process finds in place of none. So the tests that need a
GPU run here too, and those in `inside` beside them; what this says nothing about is the GPU itself.
"""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from fake_driver.stand_in import HERE, build

TESTS = HERE.parent
INSIDE = HERE / "inside"
# Files, what of them, and under how many orders of the streams' work. The C library has a CUDA runtime of its own; of
# the guide images, which take long, those farthest from the picture's middle are drawn.
_KERNELS = "not c_library and not (draw_keypoints and (1-float or 3-float))"
PARTS = {
    "kernels": ([INSIDE / "test_strictness.py", "runtime/cuda/test_kernels_gpu.py", "-k", _KERNELS], 1),
    "device": (["runtime/cuda/test_device_gpu.py", INSIDE / "test_loop.py"], 6),
    "clips": ([INSIDE / "test_engines.py", INSIDE / "test_generate.py"], 1),
    "plans": ([INSIDE / "test_bisect.py", INSIDE / "test_verify.py"], 1),
    "budget": ([INSIDE / "test_budget.py"], 1),
    "check": ([INSIDE / "test_gpu_check.py"], 1),
}


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes that have two GPUs, sm89, and TensorRT 11.4."""
    for module in ("cuda.bindings.driver", "nvidia.cu13"):
        if find_spec(module.split(".")[0]) is None or find_spec(module) is None:
            pytest.skip("cuda-bindings or nvidia-cuda-nvrtc is not installed (both are part of the test extra)")
    folder = tmp_path_factory.mktemp("machine")
    build(folder)
    about = folder / "tensorrt-11.4.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 11.4\n")
    paths = [folder, HERE / "installed", TESTS, os.environ.get("PYTHONPATH", "")]
    libraries = [folder, os.environ.get("LD_LIBRARY_PATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths if str(path)),
        "LD_LIBRARY_PATH": os.pathsep.join(str(path) for path in libraries if str(path)),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="the stand-in is a library for Linux")
@pytest.mark.parametrize("part", PARTS)
def test_what_needs_a_gpu_runs_on_a_stand_in_of_its_driver(part: str, machine: dict[str, str]) -> None:
    given, orders = PARTS[part]
    files = [str(TESTS / word) if str(word).endswith(".py") else word for word in given]
    command = [sys.executable, "-m", "pytest", "-p", "fake_driver.plugin", f"--orders={orders}", "-q", "-x", *files]
    done = subprocess.run(command, env=machine, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = done.stdout.splitlines()[-1]
    assert "passed" in summary and "skipped" not in summary, done.stdout


def test_no_file_beside_them_is_forgotten() -> None:
    assert {path for given, _ in PARTS.values() for path in given} >= set(INSIDE.glob("test_*.py"))
