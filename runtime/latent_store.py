"""The latents of a clip while it is denoised: only frames that a window in progress needs are held."""

from collections.abc import Callable
from dataclasses import astuple

import numpy as np

from vexpress_trt.runtime.compiled import native_module
from vexpress_trt.runtime.scheduler import Scheduler
from vexpress_trt.runtime.windows import WindowPlan


class LatentStore:
    """Gathers windows, averages their overlapping predictions, steps frames and gives out final ones.

    A frame is stepped when all windows that contain it have predicted it; contributions are added in window order
    whatever order they came in, so any order of calls gives bit-identical latents. All arrays are float32 and allocated
    once: frame f lies in slot f modulo their number.
    """

    def __init__(
        self,
        plan: WindowPlan,
        scheduler: Scheduler,
        noise: Callable[[int], np.ndarray],
        shape: tuple[int, ...],
        *,
        guidance_scale: float = 1.0,
        live_windows: int | None = None,
    ) -> None:
        """`noise(frame)` gives a frame's initial latent of `shape` [4, h, w]; it is asked once per frame, when first
        needed. `live_windows`: how many windows may be in progress at once (None: all)."""
        self._plan = plan
        self._scheduler = scheduler
        self._noise = noise
        self._guidance = guidance_scale
        self._slots = plan.live_frames(min(live_windows or plan.windows, plan.windows))
        most = plan.reach + 1  # windows that contain a frame
        self._latents = np.empty((self._slots, *shape), np.float32)
        self._pending = np.empty((self._slots, most, *shape), np.float32)
        self._history = np.empty((self._slots, int(np.prod(shape))), np.float32) if scheduler.remembers else None
        self._arrived = np.zeros((self._slots, most), bool)
        self._frames = np.full(self._slots, -1)  # which frame is in each slot
        self._steps = np.zeros(self._slots, np.int32)
        self._places = np.empty((plan.window, 4), np.int32)
        self._next_final = 0
        self._step_window = native_module().step_window

    @property
    def live_frames(self) -> int:
        """Frames whose latents are held now."""
        return int((self._frames >= 0).sum())

    def gather(self, window: int, step: int, out: np.ndarray) -> None:
        """Write the latents that a window needs at a step to `out` [F, 4, h, w].

        Raises ValueError when the order of calls does not allow this step yet, or not any more.
        """
        for row, frame in zip(out, range(*self._plan.span(window)), strict=True):
            row[...] = self._latents[self._slot_at(frame, step)]

    def scatter(self, window: int, step: int, prediction: np.ndarray) -> bool:
        """Take a window's prediction [2, F, 4, h, w] (unconditional, conditional) or [1, F, 4, h, w] for a step; steps
        every frame that is complete with it. Returns whether all of it is finite; if not, the clip is lost."""
        start, stop = self._plan.span(window)
        for place, frame in zip(self._places, range(start, stop), strict=True):
            slot, containing = self._slot_at(frame, step), self._plan.containing(frame)
            rank = window - containing.start
            self._arrived[slot, rank] = True
            complete = bool(self._arrived[slot, : len(containing)].all())
            place[:] = slot, len(containing), rank, complete
            if complete:
                self._arrived[slot] = False
                self._steps[slot] += 1
        weights = np.array(astuple(self._scheduler.weights(step)), np.float32)
        flat = prediction.reshape(*prediction.shape[:2], -1)
        latents, pending = self._latents.reshape(self._slots, -1), self._pending.reshape(*self._pending.shape[:2], -1)
        return self._step_window(flat, latents, pending, self._places, self._guidance, weights, self._history) < 0

    def pop_final(self) -> list[tuple[int, np.ndarray]]:
        """Frames that became final and follow those given before: (frame, latent [4, h, w]) in frame order."""
        final = []
        while True:
            frame = self._next_final
            slot = frame % self._slots
            if self._frames[slot] != frame or self._steps[slot] != self._scheduler.steps:
                return final
            self._frames[slot] = -1
            final.append((frame, self._latents[slot].copy()))
            self._next_final += 1

    def _slot_at(self, frame: int, step: int) -> int:
        """Where a frame lies, which must have come to this step."""
        slot = frame % self._slots
        if not self._next_final <= frame < self._next_final + self._slots:
            state = "final" if frame < self._next_final else f"out of reach of frame {self._next_final}"
            raise ValueError(f"frame {frame} is {state}, not at step {step}")
        if self._frames[slot] < 0:
            self._frames[slot], self._steps[slot] = frame, 0
            self._latents[slot] = self._noise(frame)
        if self._steps[slot] != step:
            raise ValueError(f"frame {frame} is at step {self._steps[slot]}, not at step {step}")
        return slot
