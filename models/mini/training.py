"""A training run that can be stopped and taken up again: plan, moving average, weights on disk, curve.

What a step sees depends on the seed, the step's number and the data there is, so that no generator's state is kept.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vexpress_trt.models.mini.graphs import Steps
from vexpress_trt.models.mini.threads import Threads

_LONGEST_INTERVAL = 600.0  # seconds of training between two times that weights are saved
_LONGEST_STEP = 60.0  # seconds: a step that took longer was suspended, and does not count
_LARGEST_PART = 15_000_000  # bytes of weights in one file
_LOOK_EVERY = 20  # steps between two looks at the device's numbers
_NOTE_EVERY = 5  # looks between two lines of the curve


@dataclass(frozen=True)
class Plan:
    """How a stage is trained. The rate rises for `warm_up` steps, stays, and falls to 0 over the last `decay` share.

    The plan's end is after `steps` or, where that is None, when the time given to the stage is over.
    """

    rate: float
    steps: int | None = None
    warm_up: int = 100
    decay: float = 0.3
    average: float = 0.999
    weight_decay: float = 0.01
    clip: float = 1.0

    def rate_at(self, done: float, steps_since_start: int) -> float:
        """`done`: the share of the plan that lies behind. Every start warms up, as the optimiser starts anew."""
        rising = min(1.0, (steps_since_start + 1) / self.warm_up)
        return self.rate * rising * min(1.0, max(0.0, (1 - done) / self.decay))


class Run:
    """One stage of training in its own folder: the averaged weights (`weights-1.safetensors` and so on).

    A run that goes on does so from the averaged weights; lines of the curve go to `curve.jsonl` beside the folder.
    """

    def __init__(self, folder: Path, modules: nn.Module, plan: Plan) -> None:
        self.folder, self.modules, self.plan, self.step, self.done = folder, modules, plan, 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if _parts(folder):
            modules.load_state_dict(averaged_weights(folder))
            self.step, self.done = progress_of(folder)
            print(f"{folder.name}: going on at step {self.step}, {self.done:.1%} of the plan", flush=True)
        self._trained = [parameter for parameter in modules.parameters() if parameter.requires_grad]
        self._optimiser = torch.optim.AdamW(
            self._trained, plan.rate, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=True
        )
        self._own = [tensor for tensor in modules.state_dict().values() if tensor.is_floating_point()]
        self._average = [tensor.detach().clone() for tensor in self._own]
        self._started_at, self._stopped = self.step, False

    def train(
        self,
        draw: Callable[[int], Sequence[Tensor]],
        loss: Callable[..., Tensor],
        names: Sequence[str],
        measure: Callable[[], Mapping[str, float]],
        seconds: float,
        *,
        graphs: bool = False,
    ) -> bool:
        """Trains until the plan's end, the time limit or SIGTERM; says whether the plan's end was reached.

        `draw(step)` returns the tensors of a step and `loss` makes of them float32 [K], the numbers called `names`, of
        which the first is minimised. `measure()` is called with the averaged weights in place, when weights are saved
        and at the end. Weights are saved whatever ends the training. Raises FloatingPointError where a number, or a
        weight at the plan's end, is not finite.
        """
        signal.signal(signal.SIGTERM, self._stop)
        steps, threads = Steps(loss, self._trained, graphs=graphs), Threads(torch.get_num_threads())
        begun_at, worked, saved = self.done, 0.0, 0.0
        interval = min(max(25.0, seconds / 10), _LONGEST_INTERVAL)
        sums, count, looks, before = 0.0, 0, 0, time.monotonic()
        try:
            while self.done < 1 and worked < seconds and not self._stopped:
                sums, count = sums + self._one_step(steps, draw), count + 1
                if self.step % _LOOK_EVERY == 0:
                    threads.adapt()
                    looks += 1
                    if looks % _NOTE_EVERY == 1:
                        self.note(self._means(names, sums, count) | {"seconds": round(worked, 1)})
                        sums, count = 0.0, 0
                    elif sums.device.type == "cuda":
                        torch.cuda.synchronize()  # the host must not run ahead of the clock
                now = time.monotonic()
                worked, before = worked + min(now - before, _LONGEST_STEP), now
                self.done = self._done(begun_at, worked / max(seconds, 1e-9))
                if worked - saved > interval:
                    self.save()
                    self.note(self.with_average(measure))
                    saved = worked
        finally:
            whole = self.save()
        finished = self.done >= 1
        if finished and not whole:
            raise FloatingPointError(f"{self.folder.name}: weights at step {self.step} are not finite")
        if finished:
            self.note({"final": True, **self.with_average(measure)})
        return finished

    def with_average(self, action: Callable):
        """`action()` while the modules hold the moving average of their weights."""
        own = [tensor.clone() for tensor in self._own]
        self.modules.eval()
        try:
            with torch.no_grad():
                torch._foreach_copy_(self._own, self._average)
                return action()
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._own, own)
            self.modules.train()

    def note(self, numbers: Mapping) -> None:
        """Appends a line to the curve and prints it."""
        line = json.dumps({"stage": self.folder.name, "step": self.step, "done": round(self.done, 4), **numbers})
        with open(self.folder.parent / "curve.jsonl", "a", encoding="utf-8") as curve:
            curve.write(line + "\n")
        print(line, flush=True)

    def save(self) -> bool:
        """Writes the averaged weights, parameters in half precision; False, and nothing, where one is not finite."""
        if not all(bool(norm.isfinite()) for norm in torch._foreach_norm(self._average)):
            print(f"{self.folder.name}: weights are not finite and were not saved", flush=True)
            return False
        average = iter(self._average)
        state = {
            name: next(average) if tensor.is_floating_point() else tensor
            for name, tensor in self.modules.state_dict().items()
        }
        trained = {name for name, _ in self.modules.named_parameters()}
        state = {name: (tensor.half() if name in trained else tensor).cpu() for name, tensor in state.items()}
        write_weights(self.folder, state, self.step, self.done)
        return True

    def _one_step(self, steps: Steps, draw: Callable[[int], Sequence[Tensor]]) -> Tensor:
        for group in self._optimiser.param_groups:
            group["lr"] = self.plan.rate_at(self.done, self.step - self._started_at)
        numbers = steps(draw(self.step))
        nn.utils.clip_grad_norm_(self._trained, self.plan.clip)
        self._optimiser.step()
        self.step += 1
        share = min(self.plan.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self._average, self._own, 1 - share)
        return numbers

    def _done(self, begun_at: float, share_of_time: float) -> float:
        if self.plan.steps is not None:
            return self.step / self.plan.steps
        return 1.0 if share_of_time >= 1 else begun_at + (1 - begun_at) * share_of_time

    def _means(self, names: Sequence[str], sums: Tensor, count: int) -> dict[str, float]:
        means = dict(zip(names, (round(value, 5) for value in (sums / count).tolist()), strict=True))
        if not all(abs(value) < float("inf") for value in means.values()):
            raise FloatingPointError(f"{self.folder.name}: step {self.step} has {means}")
        return means

    def _stop(self, *_signal) -> None:
        self._stopped = True


def write_weights(folder: Path, state: Mapping[str, Tensor], step: int, done: float) -> None:
    """Writes weights in parts, each file whole, with how far the training is."""
    folder.mkdir(parents=True, exist_ok=True)
    parts, size = [{}], 0
    for name, tensor in state.items():
        size += tensor.nbytes
        if size > _LARGEST_PART and parts[-1]:
            parts.append({})
            size = tensor.nbytes
        parts[-1][name] = tensor.detach().contiguous().clone()
    for number, part in enumerate(parts, start=1):
        fresh = folder / f"weights-{number}.new"
        save_file(part, fresh, metadata={"step": str(step), "done": str(done), "parts": str(len(parts))})
        fresh.chmod(0o644)
        os.replace(fresh, folder / f"weights-{number}.safetensors")


def averaged_weights(folder: Path) -> dict[str, Tensor]:
    """The moving average of a run's weights, float32, as its modules name them. Raises FileNotFoundError."""
    state = {}
    for path in _parts(folder):
        with safe_open(path, "pt") as file:
            parts = int(file.metadata()["parts"])
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                state[name] = tensor.float() if tensor.is_floating_point() else tensor
    if not state or len(_parts(folder)) < parts:
        raise FileNotFoundError(f"{folder} lacks weights; run the stage that trains them first")
    return state


def progress_of(folder: Path) -> tuple[int, float]:
    """The step, and the share of the plan that was done, when the weights were written; (0, 0.0) without weights."""
    if not _parts(folder):
        return 0, 0.0
    with safe_open(_parts(folder)[0], "pt") as file:
        return int(file.metadata()["step"]), float(file.metadata()["done"])


def generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The random numbers of one step."""
    return torch.Generator(device).manual_seed((seed << 32) + step)


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("weights-*.safetensors"))
