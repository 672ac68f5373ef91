"""Work of others on the machine, as the GPU check tells it."""

import subprocess
import sys

from vexpress_trt.bench.gpu_check import surroundings


def test_other_work_on_the_machine_is_told() -> None:
    busy = subprocess.Popen(
        [sys.executable, "-c", "import os\nos.nice(19)\nprint(flush=True)\nwhile True: pass"], stdout=-1
    )
    try:
        busy.stdout.read(1)
        looks = (surroundings.other_work(1.0) for _ in range(30))  # beside other work it may have to wait for its turn
        found = next(found for found in looks if found["of_idle_priority"])
    finally:
        busy.kill()
        busy.communicate()
    assert found["busy_processes"] >= found["of_idle_priority"] >= 1 and found["cores"] > 0.2
