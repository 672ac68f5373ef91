"""Every kernel against its twin on the CPU: the tests that need a GPU, of loop, engines and video encoder too."""

import re
import subprocess
import sys
from importlib.util import find_spec

from vexpress_trt.bench.gpu_check.parts import CheckFailed, Record, Setting

TESTS = (
    "tests/runtime/cuda/test_kernels_gpu.py",
    "tests/runtime/cuda/test_device_gpu.py",
    "tests/runtime/test_video_encoder.py",
    "tests/engines/test_onnxruntime_cuda_engine.py",
    "tests/engines/test_torch_engine.py",
    "tests/export/nets/fused/test_operations.py",
    "tests/export/nets/fused/test_kernels.py",
)


def check(setting: Setting, record: Record) -> None:
    """Run the tests. Raises CheckFailed when one fails, or when none ran on the GPU."""
    tests = [path for path in TESTS if find_spec("av") or "video" not in path]
    if len(tests) < len(TESTS):
        record("skipped", "the GPU's video encoder: PyAV is not installed")
    command = [sys.executable, "-m", "pytest", *tests, "-m", "gpu", "-q", "-p", "no:cacheprovider", "--durations=5"]
    done = subprocess.run(
        command, cwd=setting.repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(done.stdout)
    counts = outcomes(done.stdout)
    record("tests", counts)
    if counts["failed"] or counts["errors"]:
        raise CheckFailed("\n".join(re.findall(r"^(?:FAILED|ERROR) .*$", done.stdout, re.MULTILINE)))
    if setting.device == "cuda" and not counts["passed"]:
        raise CheckFailed(f"no test ran: pytest ended with {done.returncode}")


def outcomes(text: str) -> dict[str, int]:
    """pytest's closing line as numbers."""
    last = text.strip().splitlines()[-1] if text.strip() else ""
    found = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|skipped|errors?)", last)}
    return {
        "passed": found.get("passed", 0),
        "failed": found.get("failed", 0),
        "skipped": found.get("skipped", 0),
        "errors": found.get("errors", found.get("error", 0)),
    }
