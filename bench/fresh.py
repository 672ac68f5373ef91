"""Commands in processes of their own: nothing that ran before makes them faster, and their memory is theirs alone."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from vexpress_trt.engines.errors import UserError

_ERROR = "vexpress: error: "


@dataclass(frozen=True)
class Finished:
    """A process that succeeded: seconds of wall clock from its start to its end, and the JSON it printed last."""

    seconds: float
    result: Any


def run_fresh(module: str, arguments: Sequence[str], what: str) -> Finished:
    """Run `python -m module arguments` and wait; the last thing it prints must be one JSON document.

    Raises UserError with the process's own sentence, or its last words, when it fails; `what` names it.
    """
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as words:
        began = perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=words, text=True, check=False)
        seconds = perf_counter() - began
        words.seek(0)
        said = [line.strip() for line in words if line.strip()]
    if done.returncode != 0:
        raise UserError(f"{what}: {_last_words(said, done.returncode)}")
    try:
        return Finished(seconds, json.loads(done.stdout))
    except ValueError:
        raise UserError(f"{what} ended without a result: {_last_words(said, 0)}") from None


def _last_words(lines: list[str], code: int) -> str:
    sentence = next((line.removeprefix(_ERROR) for line in lines if line.startswith(_ERROR)), None)
    if sentence is not None:
        return sentence
    if code < 0:
        return f"it was ended by signal {-code}; with 9 there was most likely not enough memory"
    return lines[-1] if lines else f"it ended with status {code} and said nothing"
