"""Every kernel against its twin on the CPU: the tests that need a GPU, of loop, engines and video encoder too."""

import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec

from vexpress_trt.bench.gpu_check.parts import CheckFailed, Record, Setting

TESTS = (
    "tests/export/nets/fused/test_kernels.py",
    "tests/export/nets/fused/test_operations.py",
    "tests/runtime/cuda/test_kernels_gpu.py",
    "tests/runtime/cuda/test_device_gpu.py",
    "tests/runtime/test_video_encoder.py",
    "tests/engines/test_onnxruntime_cuda_engine.py",
    "tests/engines/test_torch_engine.py",
)
OUTCOMES = {"PASSED": "passed", "FAILED": "failed", "SKIPPED": "skipped", "ERROR": "errors"}
MOST_NAMED = 12  # tests that failed, by name


def check(setting: Setting, record: Record) -> None:
    """Run the tests. Raises CheckFailed when one fails, or when none ran on the GPU."""
    tests = [path for path in TESTS if find_spec("av") or "video" not in path]
    if len(tests) < len(TESTS):
        record("skipped", "the GPU's video encoder: PyAV is not installed")
    command = [sys.executable, "-m", "pytest", *tests, "-m", "gpu", "-v", "-p", "no:cacheprovider", "--durations=8"]
    counts, failed = dict.fromkeys(OUTCOMES.values(), 0), []
    with subprocess.Popen(
        [*command, "--continue-on-collection-errors", "--tb=short", "-o", "timeout=60"],
        cwd=setting.repository,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as pytest:
        for test, outcome in outcomes(said_aloud(pytest.stdout)):
            counts[OUTCOMES[outcome]] += 1
            record("tests", counts)
            if outcome in ("FAILED", "ERROR"):
                failed.append(f"{test} {outcome}")
                record("failed_in_file", Counter(re.split("::| ", test)[0] for test in failed))
    if pytest.returncode not in ((1,) if failed else (0, 5)):
        failed.insert(0, f"pytest ended with {pytest.returncode}: see the part's log")
    if failed:
        raise CheckFailed("\n".join(failed[:MOST_NAMED]))
    if setting.device == "cuda" and not counts["passed"]:
        raise CheckFailed(f"no test ran: pytest ended with {pytest.returncode}")


def said_aloud(lines: Iterable[str]) -> Iterator[str]:
    """The same lines, printed as they come."""
    for line in lines:
        print(line, end="", flush=True)
        yield line


def outcomes(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(test, outcome) of what `pytest -v` says of each, and of files that it cannot read."""
    for line in lines:
        if found := re.match(rf"(\S+::.+?) ({'|'.join(OUTCOMES)})\b", line):
            yield found[1], found[2]
        elif found := re.match(r"ERROR (\S+\.py)( - |$)", line):
            yield found[1], "ERROR"
