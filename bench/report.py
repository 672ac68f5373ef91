"""What all results share: repeated measurements as one figure, Markdown tables, JSON without this machine's paths."""

import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import floor, log10
from pathlib import Path
from statistics import median
from typing import Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path, check_place


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one quantity, in its unit: the median, the smallest and the largest."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """From at least one value."""
        found = [float(value) for value in values]
        return cls(median(found), min(found), max(found))

    def scaled(self, factor: float) -> "Spread":
        """The same in another unit; `factor` is positive."""
        return Spread(self.median * factor, self.min * factor, self.max * factor)

    def text(self, digits: int = 4) -> str:
        """`median (min-max)` in significant digits."""
        return f"{number(self.median, digits)} ({number(self.min, digits)}-{number(self.max, digits)})"


def number(value: float | None, digits: int = 3) -> str:
    """A number in so many significant digits and without an exponent; `-` for None."""
    if value is None:
        return "-"
    decimals = digits - 1 - floor(log10(abs(value))) if value else 0
    return f"{value:.{max(0, decimals)}f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command that is running (or these arguments of it), with files' names in place of their paths."""
    words = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["vexpress", *map(_name_only, words)])


def write_json(report: Any, path: Path) -> None:
    """Write a result (a dataclass) as JSON; the file is whole or absent. Raises UserError where it cannot be."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")


def check_json_path(path: Path | None) -> None:
    """Refuse, before minutes are spent on its content, a file that could not be written. Raises UserError."""
    if path is not None:
        check_place(path)


def read_json(path: Path) -> dict[str, Any]:
    """A result that `write_json` wrote. Raises UserError where the file is none."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        reason = problem.strerror.lower() if isinstance(problem, OSError) else problem
        raise UserError(
            f"{path} is not a readable result ({reason}): make one with `vexpress bench ... --json`"
        ) from None
    if not isinstance(document, dict) or not isinstance(document.get("kind"), str):
        raise UserError(f"{path} is no result of this version of `vexpress bench`: measure again with --json")
    return document


def require_file(path: Path | None, flag: str) -> None:
    """Raise UserError where a file that a run needs is not named or not there."""
    if path is None:
        raise UserError(f"{flag} is missing: name a file.")
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist or is not a file: check {flag}")


def _name_only(word: str) -> str:
    flag, equals, value = word.partition("=")
    if flag.startswith("--") and equals:
        return flag + equals + _name_only(value)
    return Path(word).name if os.sep in word and Path(word).name else word
