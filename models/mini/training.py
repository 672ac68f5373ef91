"""A training run that can be stopped and taken up again at any step: plan, moving average, checkpoints, curve.

What a step sees depends on the seed and the step's number only, so that no generator's state has to be kept.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vexpress_trt.models.mini.threads import Threads

_LONGEST_STEP = 60.0  # seconds: a step that took longer was suspended, and does not count against the time limit


@dataclass(frozen=True)
class Plan:
    """How a stage is trained. The rate rises for `warm_up` steps, stays, and falls to 0 over the last `decay` share."""

    steps: int
    rate: float
    warm_up: int = 100
    decay: float = 0.3
    average: float = 0.999
    weight_decay: float = 0.01
    clip: float = 1.0
    measure_every: int = 500
    save_seconds: float = 180.0

    def rate_at(self, step: int) -> float:
        rising = min(1.0, (step + 1) / self.warm_up)
        falling = min(1.0, (self.steps - step) / max(1.0, self.decay * self.steps))
        return self.rate * rising * max(falling, 0.0)


class Run:
    """One stage of training in its own folder: `state.pt` (all that is needed to go on) and `curve.jsonl`."""

    def __init__(self, folder: Path, modules: nn.Module, plan: Plan) -> None:
        self.folder, self.modules, self.plan, self.step = folder, modules, plan, 0
        folder.mkdir(parents=True, exist_ok=True)
        self._optimiser = torch.optim.AdamW(
            modules.parameters(), plan.rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay
        )
        self._average = {name: tensor.detach().clone() for name, tensor in modules.state_dict().items()}
        self._stopped = False
        if (folder / "state.pt").exists():
            self._restore()

    def train(
        self,
        loss_of: Callable[[int], tuple[Tensor, Mapping[str, float]]],
        measure: Callable[[], Mapping[str, float]],
        minutes: float,
    ) -> bool:
        """Trains until the plan's end, the time limit or SIGTERM; says whether the plan's end was reached.

        `loss_of(step)` returns the loss and numbers for the curve; `measure()` is called with the averaged weights in
        place, every `measure_every` steps and at the end.
        """
        signal.signal(signal.SIGTERM, self._stop)
        threads = Threads(torch.get_num_threads())
        worked, saved, since, sums = 0.0, 0.0, 0, {}
        while self.step < self.plan.steps and worked < 60 * minutes and not self._stopped:
            threads.adapt()
            begun = time.monotonic()
            numbers = self._one_step(loss_of)
            for name, value in numbers.items():
                sums[name] = sums.get(name, 0.0) + value
            since += 1
            worked += min(time.monotonic() - begun, _LONGEST_STEP)
            if self.step % 20 == 0:
                means = {name: round(value / since, 5) for name, value in sums.items()}
                self.note({"step": self.step, "minutes": round(worked / 60, 2), **means})
                since, sums = 0, {}
            if self.step % self.plan.measure_every == 0:
                self.note({"step": self.step, **self.with_average(measure)})
            if worked - saved > self.plan.save_seconds:
                self.save()
                saved = worked
        self.save()
        finished = self.step >= self.plan.steps
        if finished:
            self.note({"step": self.step, "final": True, **self.with_average(measure)})
        return finished

    def with_average(self, action: Callable):
        """`action()` while the modules hold the moving average of their weights."""
        own = {name: tensor.detach().clone() for name, tensor in self.modules.state_dict().items()}
        self.modules.load_state_dict(self._average)
        self.modules.eval()
        try:
            with torch.no_grad():
                return action()
        finally:
            self.modules.load_state_dict(own)
            self.modules.train()

    def note(self, numbers: Mapping) -> None:
        """Appends a line to the curve and prints it."""
        line = json.dumps(dict(numbers))
        with open(self.folder / "curve.jsonl", "a", encoding="utf-8") as curve:
            curve.write(line + "\n")
        print(line, flush=True)

    def save(self) -> None:
        state = {
            "step": self.step,
            "modules": self.modules.state_dict(),
            "average": self._average,
            "optimiser": self._optimiser.state_dict(),
        }
        fresh = self.folder / "state.pt.new"
        torch.save(state, fresh)
        os.replace(fresh, self.folder / "state.pt")

    def _restore(self) -> None:
        state = torch.load(self.folder / "state.pt", weights_only=True)
        self.step = state["step"]
        self.modules.load_state_dict(state["modules"])
        self._average = state["average"]
        self._optimiser.load_state_dict(state["optimiser"])
        print(f"going on at step {self.step}", flush=True)

    def _one_step(self, loss_of: Callable) -> Mapping[str, float]:
        for group in self._optimiser.param_groups:
            group["lr"] = self.plan.rate_at(self.step)
        loss, numbers = loss_of(self.step)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), self.plan.clip)
        self._optimiser.step()
        self.step += 1
        share = min(self.plan.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, tensor in self.modules.state_dict().items():
                if tensor.is_floating_point():
                    self._average[name].lerp_(tensor, 1 - share)
                else:
                    self._average[name].copy_(tensor)
        return numbers

    def _stop(self, *_signal) -> None:
        self._stopped = True


def averaged_weights(folder: Path) -> dict[str, Tensor]:
    """The moving average of a run's weights, as its modules name them."""
    return torch.load(folder / "state.pt", weights_only=True)["average"]


def generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step."""
    return torch.Generator().manual_seed((seed << 32) + step)
