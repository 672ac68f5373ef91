"""The latents of a clip while it is denoised: only frames that a window in progress needs are held."""

from collections.abc import Callable
from functools import reduce

import numpy as np

from vexpress_trt.runtime.scheduler import Scheduler
from vexpress_trt.runtime.windows import WindowPlan


class LatentStore:
    """Gathers windows, averages their overlapping predictions, steps frames and gives out final ones.

    A frame is stepped when all windows that contain it have predicted it; contributions are added in window order
    whatever order they came in, so any order of calls gives bit-identical latents. All arrays are float32.
    """

    def __init__(self, plan: WindowPlan, scheduler: Scheduler, noise: Callable[[int], np.ndarray]) -> None:
        """`noise(frame)` gives a frame's initial latent [4, h, w]; it is asked once per frame, when first needed."""
        self._plan = plan
        self._scheduler = scheduler
        self._noise = noise
        self._latents: dict[int, np.ndarray] = {}
        self._steps: dict[int, int] = {}
        self._predictions: dict[int, dict[int, np.ndarray]] = {}
        self._next_final = 0

    @property
    def live_frames(self) -> int:
        """Frames whose latents are held now."""
        return len(self._latents)

    def gather(self, window: int, step: int) -> np.ndarray:
        """The latents [F, 4, h, w] that a window needs at a step.

        Raises ValueError when the order of calls does not allow this step yet, or not any more.
        """
        return np.stack([self._at_step(frame, step) for frame in range(*self._plan.span(window))])

    def scatter(self, window: int, step: int, prediction: np.ndarray) -> None:
        """Take a window's guided prediction [F, 4, h, w] for a step; steps every frame that is complete with it."""
        start, stop = self._plan.span(window)
        for frame in range(start, stop):
            self._at_step(frame, step)
            containing = self._plan.containing(frame)
            pending = self._predictions.setdefault(frame, {})
            pending[window] = prediction[frame - start] / np.float32(len(containing))
            if len(pending) == len(containing):
                mean = reduce(np.add, (pending[other] for other in containing))
                self._latents[frame] = self._scheduler.step(self._latents[frame], mean, step)
                self._steps[frame] += 1
                del self._predictions[frame]

    def pop_final(self) -> list[tuple[int, np.ndarray]]:
        """Frames that became final and follow those given before: (frame, latent [4, h, w]) in frame order."""
        final = []
        while self._steps.get(self._next_final) == self._scheduler.steps:
            frame = self._next_final
            del self._steps[frame]
            final.append((frame, self._latents.pop(frame)))
            self._next_final += 1
        return final

    def _at_step(self, frame: int, step: int) -> np.ndarray:
        if frame not in self._steps and frame >= self._next_final:
            self._steps[frame], self._latents[frame] = 0, np.asarray(self._noise(frame), np.float32)
        if self._steps.get(frame) != step:
            raise ValueError(f"frame {frame} is at step {self._steps.get(frame, 'final')}, not at step {step}")
        return self._latents[frame]
