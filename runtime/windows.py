"""Overlapping windows over a clip, and the orders in which their denoising steps may run.

Window w covers frames w * stride to w * stride + window - 1. Step t + 1 of a window needs step t of itself and of all
windows it shares frames with, nothing else: every order that respects this gives the same numbers.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from vexpress_trt.engines.errors import UserError


@dataclass(frozen=True)
class WindowPlan:
    """`windows` windows of `window` frames, neighbours sharing `overlap` frames."""

    window: int
    overlap: int
    windows: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.window or self.windows < 1:
            raise ValueError(f"no plan of {self.windows} windows of {self.window} frames with overlap {self.overlap}")

    @classmethod
    def covering(cls, length: int, window: int, overlap: int) -> "WindowPlan":
        """As few windows as cover `length` frames; the last one may reach beyond them."""
        return cls(window, overlap, 1 + max(0, -(-(length - window) // (window - overlap))))

    @classmethod
    def tiled(cls, seconds: float, fps: float, window: int, overlap: int) -> "WindowPlan":
        """Upstream's plan: as many whole windows as fit into the audio (golden README, section 4, "Video length").

        Raises UserError when not one fits, where upstream ends in an index error.
        """
        available = int(seconds * fps)
        windows = (available - window) // (window - overlap) + 1
        if windows < 1:
            raise UserError(
                f"the audio fills {available} frames at {fps:g} frames/s, fewer than one window of {window}: with "
                "--compat upstream give longer speech or fewer --context_frames."
            )
        return cls(window, overlap, windows)

    @property
    def stride(self) -> int:
        """Frames from one window's start to the next's."""
        return self.window - self.overlap

    @property
    def frames(self) -> int:
        """Frames that all windows cover."""
        return self.live_frames(self.windows)

    @property
    def reach(self) -> int:
        """How many windows on each side share frames with a window: ceil(window / stride) - 1."""
        return -(-self.window // self.stride) - 1

    def live_frames(self, windows: int) -> int:
        """Frames that so many consecutive windows cover."""
        return (windows - 1) * self.stride + self.window

    def span(self, window: int) -> tuple[int, int]:
        """First frame of a window, and the frame behind its last."""
        return window * self.stride, window * self.stride + self.window

    def containing(self, frame: int) -> range:
        """The windows that contain a frame."""
        first = max(0, -(-(frame - self.window + 1) // self.stride))
        return range(first, min(self.windows - 1, frame // self.stride) + 1)


Call = tuple[int, int]  # (window, step)


def latency_order(plan: WindowPlan, steps: int) -> Iterator[Call]:
    """Only what the next window needs to become final.

    The first window is final after S + reach * S * (S - 1) / 2 calls for S steps, and another one every S calls after
    that, however long the clip is; at most `live_windows(plan, steps)` windows are in progress.
    """
    begun = [0] * steps  # the next window to run at each step
    for target in range(plan.windows):
        for step in range(steps):
            stop = min(plan.windows, target + plan.reach * (steps - 1 - step) + 1)
            for window in range(begun[step], stop):
                yield window, step
            begun[step] = max(begun[step], stop)


def throughput_fronts(plan: WindowPlan, steps: int) -> Iterator[list[Call]]:
    """Lists of calls that do not depend on one another and can run at once.

    Front number window + (reach + 1) * step; at most `live_windows(plan, steps, batch=2)` windows are in progress.
    """
    slope = plan.reach + 1
    for front in range(plan.windows + slope * (steps - 1)):
        calls = [(front - slope * step, step) for step in reversed(range(steps))]
        yield [(window, step) for window, step in calls if 0 <= window < plan.windows]


def batches(plan: WindowPlan, steps: int, batch: int) -> Iterator[list[Call]]:
    """The calls of a clip in lists of up to `batch` that can run at once: in latency order for 1, else by fronts."""
    if batch == 1:
        yield from ([call] for call in latency_order(plan, steps))
        return
    for front in throughput_fronts(plan, steps):
        yield from (front[first : first + batch] for first in range(0, len(front), batch))


def live_windows(plan: WindowPlan, steps: int, batch: int = 1) -> int:
    """The most windows that `batches` has in progress at once: 1 + reach * (S - 1), or with fronts
    1 + (reach + 1) * (S - 1)."""
    return min(plan.windows, 1 + (plan.reach + (batch > 1)) * (steps - 1))


def alike(batches: Iterable[list[Call]], kind: Callable[[int], object]) -> Iterator[list[Call]]:
    """The same calls in the same order, batches cut where the steps' `kind` is another object."""
    for batch in batches:
        for _, calls in groupby(batch, key=lambda call: id(kind(call[1]))):
            yield list(calls)
