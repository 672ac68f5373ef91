"""The parts of the check: which there are, what each is told, and what it finds or fails at."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Part:
    """`module` has the function `check(setting, record)`, which may take so many seconds. Parts that measure neither
    time nor memory may run `beside` each other. `asked_by`: the flag without which it is left out, as it takes minutes.
    """

    module: str
    seconds: float
    quick_seconds: float
    beside: bool = False
    asked_by: str = ""


# What a run that is cut short can least do without comes first. Much of the time is Triton's, which compiles the
# denoiser's kernels on one core for every size and type that it has not met before on a machine.
PARTS = {
    "kernels": Part("kernels", 170, 120, beside=True),
    "golden": Part("golden", 150, 90, beside=True),
    "loop": Part("loops", 170, 90, beside=True),
    "speed": Part("speed", 150, 60),
    "waits": Part("waits", 90, 40),
    "generate": Part("generate", 150, 120),
    "clip": Part("clip", 90, 45),
    "tensorrt": Part("plans", 420, 120),
    "compiled": Part("compiled", 240, 60, asked_by="--compile"),
    "full_tensorrt": Part("full_plan", 1800, 1800, asked_by="--bundle"),
}
SKIPPED = "skipped"  # what a part that could not run at all finds: the reason


class CheckFailed(Exception):
    """A measured value is not what it has to be."""


class Skipped(Exception):
    """What a part needs is not there."""


class Faults:
    """Collects what is wrong in a part, which goes on: one thing's failure says nothing of the next."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Whatever is raised within is a fault of `name`."""
        try:
            yield
        except Skipped:
            raise
        except CheckFailed as problem:
            print(f"{name}: {problem}", flush=True)  # for where the part does not come to tell
            self.found.append(f"{name}: {problem}")
        except Exception as problem:
            traceback.print_exc()
            self.found.append(f"{name}: {type(problem).__name__}: {problem}")

    def tell(self) -> None:
        """Raises CheckFailed where there are any."""
        if self.found:
            raise CheckFailed("; ".join(self.found))


@dataclass(frozen=True)
class Setting:
    """`device` is "cuda" or, for tests of the check itself, "cpu"; `quick` takes the smallest sizes; `bundle` is one of
    the size that TensorRT is to be timed at."""

    repository: Path
    device: str = "cuda"
    quick: bool = False
    bundle: Path | None = None

    @property
    def small(self) -> bool:
        """Whether to measure small networks only."""
        return self.quick or self.device == "cpu"


@dataclass(frozen=True)
class PartResult:
    """What a part found, until it ended: `error` is "" where all is well, else what went wrong."""

    name: str
    seconds: float
    error: str = ""
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """In a word or two."""
        if self.error:
            return "failed"
        return "not run" if set(self.found) == {SKIPPED} else "passed"


Record = Callable[[str, Any], None]
