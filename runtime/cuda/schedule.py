"""The schedule of a clip as tables: everything a call looks up on the device, known before any call has run.

Which frames a call works on, where they lie, whether they are complete with it and how they are stepped depends on the
order of the calls and on nothing that is computed. Batches of calls are numbered; a table's row belongs to a number.
"""

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass

import numpy as np

from vexpress_trt.runtime.scheduler import Scheduler
from vexpress_trt.runtime.windows import Call, WindowPlan


@dataclass(frozen=True, eq=False)
class Batch:
    """Up to B calls that run at once, and the frames (as ranges) that are first needed for them and final after them.

    For each of B window calls: `slots` int32 [B, F], where the window's frames lie; `places` int32 [B, F, 4] as (slot,
    windows that contain the frame, this window's place among them, whether it is the last one missing); `weights`
    float32 [B, 6] as (guidance, sample, prediction, history, signal, noise); `steps` int32 [B]. Where there are fewer
    than B calls, the others work on the spare slot and complete nothing.
    """

    calls: list[Call]
    enter: range
    final: range
    slots: np.ndarray
    places: np.ndarray
    weights: np.ndarray
    steps: np.ndarray


class Schedule:
    """The batches of a clip with their tables, made one by one as they are iterated over.

    Frame f lies in slot f modulo `slots`; slot number `slots` is the spare one. Only frames of windows in progress are
    tracked, so a clip's length costs nothing.
    """

    def __init__(
        self, plan: WindowPlan, scheduler: Scheduler, *, slots: int, batch: int = 1, guidance_scale: float = 1.0
    ) -> None:
        self._plan = plan
        self._scheduler = scheduler
        self._slots = slots
        self._batch = batch
        self._weights = np.array(
            [(guidance_scale, *astuple(scheduler.weights(step))) for step in range(scheduler.steps)], np.float32
        )
        self._frames = np.full(slots, -1)  # which frame is in each slot
        self._steps = np.zeros(slots, np.int32)
        self._arrived = np.zeros((slots, plan.reach + 1), bool)
        self._next_enter = self._next_final = 0

    def batches(self, groups: Iterable[list[Call]]) -> Iterator[Batch]:
        """One batch for each list of up to B calls that can run at once.

        Raises ValueError when the order of calls does not allow one, or when `slots` are too few for it.
        """
        return map(self._tabulated, groups)

    def _tabulated(self, calls: list[Call]) -> Batch:
        count = self._plan.window
        slots = np.full((self._batch, count), self._slots, np.int32)
        places = np.empty((self._batch, count, 4), np.int32)
        places[:] = self._slots, 1, 0, 0
        steps = np.zeros(self._batch, np.int32)
        entered = self._next_enter
        for row, (window, step) in enumerate(calls):
            slots[row] = [self._slot_at(frame, step) for frame in range(*self._plan.span(window))]
            steps[row] = step
        for row, (window, _) in enumerate(calls):
            places[row] = [self._place(frame, window) for frame in range(*self._plan.span(window))]
        finished = self._next_final
        self._pop_final()
        enter, final = range(entered, self._next_enter), range(finished, self._next_final)
        return Batch(calls, enter, final, slots, places, self._weights[steps], steps)

    def _place(self, frame: int, window: int) -> tuple[int, int, int, bool]:
        slot, containing = frame % self._slots, self._plan.containing(frame)
        rank = window - containing.start
        self._arrived[slot, rank] = True
        complete = bool(self._arrived[slot, : len(containing)].all())
        if complete:
            self._arrived[slot] = False
            self._steps[slot] += 1
        return slot, len(containing), rank, complete

    def _pop_final(self) -> None:
        slot = self._next_final % self._slots
        while self._frames[slot] == self._next_final and self._steps[slot] == self._scheduler.steps:
            self._frames[slot] = -1
            self._next_final += 1
            slot = self._next_final % self._slots

    def _slot_at(self, frame: int, step: int) -> int:
        """Where a frame lies, which must have come to this step."""
        slot = frame % self._slots
        if frame == self._next_enter and self._frames[slot] < 0:
            self._frames[slot], self._steps[slot] = frame, 0
            self._next_enter += 1
        if self._frames[slot] != frame or self._steps[slot] != step:
            raise ValueError(f"frame {frame} is not at step {step} when a call needs it: the order does not allow this")
        return slot
