"""A device on which everything takes its time."""

import random
from collections.abc import Callable
from inspect import signature
from types import SimpleNamespace

import numpy as np

from vexpress_trt.runtime.cuda.host_device import HostDevice

KERNELS = (
    "gather_latents", "gather_rows", "step_window", "advance", "unscale", "to_rgb8", "median", "draw_keypoints",
)  # fmt: skip


class UnsteadyDevice(HostDevice):
    """Work waits in its stream and runs when somebody looks at an event, in any order that streams and events allow."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._queues: dict[int, list[tuple[Callable[[], bool], Callable[[], None]]]] = {}
        self._recorded: dict[object, int] = {}
        self._reached: dict[object, int] = {}
        eager = self.kernels
        self.kernels = SimpleNamespace(**{name: self._queued(getattr(eager, name)) for name in KERNELS})

    def _queued(self, kernel: Callable) -> Callable:
        place = list(signature(kernel).parameters).index("stream")
        return lambda *given: self.enqueue(given[place], lambda: kernel(*given))

    def enqueue(self, stream: int, work: Callable[[], None], ready: Callable[[], bool] = lambda: True) -> None:
        self._queues.setdefault(stream, []).append((ready, work))

    def record(self, event: object, stream: int) -> None:
        number = self._recorded[event] = self._recorded.get(event, 0) + 1
        self.enqueue(stream, lambda: self._reached.__setitem__(event, number))

    def wait(self, stream: int, event: object) -> None:
        number = self._recorded.get(event, 0)
        self.enqueue(stream, lambda: None, lambda: self._reached.get(event, 0) >= number)

    def happened(self, event: object) -> bool:
        self._run(self._random.choice([0, 1, 3, 30]))
        return self._reached.get(event, 0) >= self._recorded.get(event, 0)

    def upload(self, array: np.ndarray, target: np.ndarray, stream: int) -> None:
        self.enqueue(stream, lambda: HostDevice.upload(self, array, target, stream))

    def download(self, buffer: np.ndarray, target: np.ndarray, stream: int) -> None:
        self.enqueue(stream, lambda: HostDevice.download(self, buffer, target, stream))

    def copy(self, buffer: np.ndarray, target: np.ndarray, stream: int) -> None:
        self.enqueue(stream, lambda: HostDevice.upload(self, buffer, target, stream))

    def clear(self, buffer: np.ndarray, stream: int) -> None:
        self.enqueue(stream, lambda: buffer.fill(0))

    def close(self) -> None:
        while any(self._queues.values()):
            self._run(1000)

    def _run(self, count: int) -> None:
        for _ in range(count):
            ready = [queue for queue in self._queues.values() if queue and queue[0][0]()]
            if not ready:
                return
            self._random.choice(ready).pop(0)[1]()
