"""Progress: events from the runtime, and a reporter that shows them on a terminal or as plain lines in a log."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any, Self

PLAIN_INTERVAL = 5.0  # seconds between lines where there is no terminal


@dataclass(frozen=True)
class ProgressEvent:
    """`done` of `total` units of a stage; `detail` names what is under way, for instance the window and step.

    `frames_done` of `frames_total` frames of the clip are final; both are 0 where the stage does not make frames.
    """

    stage: str
    done: int
    total: int | None = None
    detail: str = ""
    frames_done: int = 0
    frames_total: int = 0


ProgressCallback = Callable[[ProgressEvent], None]


class Reporter:
    """Shows `ProgressEvent`s on stderr: one live line on a terminal, a line every few seconds elsewhere.

    Use as a context manager and pass it as `on_progress`.
    """

    def __init__(self, *, quiet: bool = False, stream: Any = None, interval: float = PLAIN_INTERVAL) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._interval = interval
        self._live = not quiet and self._stream.isatty()
        self._status: Any = None
        self._stage = ""
        self._stage_began = self._printed = 0.0
        self._frames_began = perf_counter()

    def __enter__(self) -> Self:
        if self._live:
            from rich.console import Console

            self._status = Console(file=self._stream).status("starting")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, event: ProgressEvent) -> None:
        """Show one event."""
        if self._quiet:
            return
        now = perf_counter()
        new_stage = event.stage != self._stage
        if new_stage:
            self._stage, self._stage_began = event.stage, now
        line = self._line(event, now)
        if self._status is not None:
            self._status.update(line)
        elif new_stage or event.done == event.total or now - self._printed >= self._interval:
            self._printed = now
            print(line, file=self._stream, flush=True)

    def counter(self, stage: str) -> Callable[[int, int | None], None]:
        """A `(done, total)` callback that reports as `stage`."""
        return lambda done, total: self(ProgressEvent(stage, done, total))

    def _line(self, event: ProgressEvent, now: float) -> str:
        parts = [event.stage]
        if event.done or event.total:
            parts.append(f"{event.done}/{event.total}" if event.total else str(event.done))
        if event.detail:
            parts.append(event.detail)
        elapsed = now - self._stage_began
        if event.frames_done:
            parts.append(f"{event.frames_done / (now - self._frames_began):.2f} frames/s")
        if event.total and 0 < event.done < event.total and elapsed > 0:
            parts.append(f"about {_duration(elapsed * (event.total - event.done) / event.done)} left")
        return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
