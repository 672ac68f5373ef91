"""Loss and gradients of a step, on GPUs as one captured CUDA graph per shape of the batch where that works.

Small networks leave a GPU waiting for the host that launches their kernels; a graph is launched at once. Run as a
program it tries capture and replay on the first GPU and says by its exit status whether they equal the plain way: a
trial that goes wrong must not take a training with it.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_WARM_UP = 3
_TRIAL_SECONDS = 60


@dataclass(frozen=True)
class _Captured:
    graph: "torch.cuda.CUDAGraph"
    inputs: tuple[Tensor, ...]
    numbers: Tensor
    gradients: tuple[Tensor | None, ...]


class Steps:
    """`steps(batch)` sets the gradients of `parameters` to those of `loss(*batch)[0]` and returns the numbers, [K]."""

    def __init__(self, loss: Callable[..., Tensor], parameters: Sequence[nn.Parameter], *, graphs: bool) -> None:
        self._loss, self._parameters, self._graphs = loss, list(parameters), graphs
        self._captured: dict[tuple, _Captured] = {}

    def __call__(self, batch: Sequence[Tensor]) -> Tensor:
        if not self._graphs:
            return self._plain(batch)
        shapes = tuple(tensor.shape for tensor in batch)
        if shapes not in self._captured:
            try:
                self._captured[shapes] = self._capture(batch)
                print(f"captured a CUDA graph for {len(batch[0])} x {tuple(batch[0].shape[1:])}", flush=True)
            except RuntimeError as error:
                print(f"no CUDA graph, going on without: {error}", flush=True)
                self._graphs = False
                return self._plain(batch)
        return self._replay(self._captured[shapes], batch)

    def _plain(self, batch: Sequence[Tensor]) -> Tensor:
        for parameter in self._parameters:
            parameter.grad = None
        numbers = self._loss(*batch)
        numbers[0].backward()
        return numbers.detach()

    def _capture(self, batch: Sequence[Tensor]) -> _Captured:
        inputs = tuple(tensor.clone() for tensor in batch)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._plain(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        for parameter in self._parameters:
            parameter.grad = None  # gradients come to lie in the graph's own memory
        with torch.cuda.graph(graph):
            numbers = self._loss(*inputs)
            numbers[0].backward()
        return _Captured(graph, inputs, numbers.detach(), tuple(p.grad for p in self._parameters))

    def _replay(self, captured: _Captured, batch: Sequence[Tensor]) -> Tensor:
        torch._foreach_copy_(list(captured.inputs), list(batch))
        captured.graph.replay()
        for parameter, gradient in zip(self._parameters, captured.gradients, strict=True):
            parameter.grad = gradient
        return captured.numbers.clone()


def start_trial() -> subprocess.Popen:
    """Starts the trial in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", __name__], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def trial_succeeded(trial: subprocess.Popen) -> bool:
    """Waits for the trial and prints its last words."""
    try:
        words = trial.communicate(timeout=_TRIAL_SECONDS)[0]
    except subprocess.TimeoutExpired:
        trial.kill()
        words = f"nothing heard for {_TRIAL_SECONDS} s"
    print(f"CUDA graphs: {' | '.join(words.strip().splitlines()[-3:])}", flush=True)
    return trial.returncode == 0


def _try() -> None:
    from vexpress_trt.models.mini.autoencoder import Autoencoder, autoencoder_loss, example_images
    from vexpress_trt.models.mini.diffusion import denoiser_loss, example_windows
    from vexpress_trt.models.mini.networks import SmallVExpress

    torch.manual_seed(0)
    moving = SmallVExpress().cuda()
    moving.denoising_unet.moving = True
    autoencoder = Autoencoder().cuda()
    autoencoder.norm.momentum = 0.0
    pairs = [
        (autoencoder_loss(autoencoder), example_images, autoencoder),
        (denoiser_loss(moving), example_windows, moving),
    ]
    for loss, example, modules in pairs:
        parameters = list(modules.parameters())
        graphed, plain = (Steps(loss, parameters, graphs=graphs) for graphs in (True, False))
        for size in (2, 4):
            for seed in range(2):
                batch = example(size, seed, "cuda")
                numbers, gradients = graphed(batch), [p.grad.clone() for p in parameters if p.grad is not None]
                expected = plain(batch)
                wanted = [p.grad for p in parameters if p.grad is not None]
                torch.testing.assert_close(numbers, expected, rtol=1e-2, atol=1e-3)
                distance = torch.stack(torch._foreach_norm(torch._foreach_sub(gradients, wanted))).norm()
                if not distance < 0.05 * torch.stack(torch._foreach_norm(wanted)).norm():
                    raise RuntimeError(f"gradients of {type(modules).__name__} differ by {float(distance):.3g}")
        if not graphed._graphs:
            raise RuntimeError(f"{type(modules).__name__} could not be captured")
    print(f"capture and replay equal the plain way on {torch.cuda.get_device_name()}")


if __name__ == "__main__":
    _try()
