"""Work of others on the machine, as the GPU check tells it."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from vexpress_trt.bench.gpu_check import surroundings


def test_other_work_on_the_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_BUSY", 0.01)  # on a busy machine it gets little
    busy = subprocess.Popen(
        [sys.executable, "-c", "import os\nos.nice(19)\nprint(flush=True)\nwhile True: pass"], stdout=-1
    )
    try:
        busy.stdout.read(1)
        looks = (surroundings.other_work(1.0) for _ in range(30))  # it may have to wait for its turn
        found = next(found for found in looks if found["of_idle_priority"])
    finally:
        busy.kill()
        busy.communicate()
    assert found["busy_processes"] >= found["of_idle_priority"] >= 1


def test_the_cores_that_others_use_are_those_of_busy_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [SimpleNamespace(pid=-number) for number in (1, 2, 3)]
    looks = iter([[0.0, 0.0, 0.0], [0.9, 0.1, 0.4]])
    monkeypatch.setattr(surroundings.psutil, "process_iter", lambda: others)
    monkeypatch.setattr(surroundings, "_shares", lambda processes: next(looks))
    found = surroundings.other_work(0.0)
    assert found["busy_processes"] == 2 and found["cores"] == 1.3
