"""One guided denoiser call on random tensors, as the engines make it and as the original does."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from vexpress_trt.bench.gpu_check.networks import (
    TORCH,
    arguments,
    denoiser,
    denoiser_spec,
    engine_on,
    random_inputs,
    randomised,
)
from vexpress_trt.export.nets.configs import NetworkConfigs

SIZES = {"B": 1, "F": 24, "h": 64, "w": 64}
SMALL_SIZES = {"B": 1, "F": 4, "h": 8, "w": 8}


class Call:
    """A denoiser engine on buffers, called eagerly or as a captured CUDA graph, on a stream of its own."""

    def __init__(
        self,
        networks: NetworkConfigs,
        sizes: dict[str, int],
        device: str,
        precision: str,
        *,
        change: Callable[[nn.Module], nn.Module] = lambda module: module,
        fused: bool = True,
    ) -> None:
        self._device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        spec = denoiser_spec(networks, guided=True, precision=precision)
        module = randomised(lambda: denoiser(networks, guided=True), device=device, dtype=TORCH[precision])
        self._engine = engine_on(device, spec, change(module), precision, fused=fused)
        inputs = random_inputs(spec, sizes, device=device)
        self.prediction = torch.zeros(1, 2, *inputs["latents"].shape[1:], device=device)
        given = {**inputs, "prediction": self.prediction}
        self._engine.bind_buffers(**given)
        self._stream = torch.cuda.Stream() if device == "cuda" else None
        self._replay: Callable[[], None] | None = None

    def eager(self) -> None:
        with self._current():
            self._engine.enqueue(self._handle)

    def captured(self) -> None:
        with self._current():
            if self._replay is None:
                self._engine.enqueue(self._handle)
                self._replay = self._engine.capture(self._handle, lambda: self._engine.enqueue(self._handle))
            self._replay()

    def memory(self) -> dict[str, float]:
        """MiB by which what torch has in use has risen at most since this was made, weights and graph included."""
        if self._device == "cpu":
            return {}
        return {"peak_allocated_mib": (torch.cuda.max_memory_allocated() - self._before) / 2**20}

    def __enter__(self) -> "Call":
        return self

    def __exit__(self, *_: object) -> None:
        self._replay = None
        self._engine.close()

    @property
    def _handle(self) -> int:
        return self._stream.cuda_stream if self._stream else 0

    def _current(self) -> AbstractContextManager[None]:
        """Work is timed on the current stream: it waits for the call's own, and that for it."""
        return _Joined(self._stream) if self._stream else nullcontext()


class _Joined:
    """Within it a side stream starts after what the current one has, and the current one goes on after it."""

    def __init__(self, side: "torch.cuda.Stream") -> None:
        self._side = side

    def __enter__(self) -> None:
        self._side.wait_stream(torch.cuda.current_stream())

    def __exit__(self, *_: object) -> None:
        torch.cuda.current_stream().wait_stream(self._side)


def originals_way(networks: NetworkConfigs, sizes: dict[str, int], device: str, precision: str) -> Callable[[], Tensor]:
    """A call as the original makes it, eagerly: both halves whole, the portrait projected anew for each frame."""
    spec = denoiser_spec(networks, guided=True, precision=precision, plain=True)
    build = lambda: denoiser(networks, guided=True, plain=True)  # noqa: E731
    module = randomised(build, device=device, dtype=TORCH[precision])
    given = arguments(spec, random_inputs(spec, sizes, device=device))

    def call() -> Tensor:
        with torch.inference_mode():
            unconditional, conditional = module(*given)[0]
            return unconditional + 3.5 * (conditional - unconditional)

    return call
