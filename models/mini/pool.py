"""Drawn clips in the device's memory, and how much each of their pixels counts."""

import time

import torch
from torch import Tensor

from vexpress_trt.models.mini.drawing import Painters
from vexpress_trt.models.mini.pose import SIZE

_AT_ONCE = 128  # clips copied in one go
_PAUSE = 0.5  # seconds between two looks at what has been drawn


class Pool:
    """The clips that are ready, see `drawing.Sheets`; the first `held` of them are kept from training."""

    def __init__(self, painters: Painters, device: torch.device, held: int = 64) -> None:
        self._painters, self.device = painters, device
        sheets = painters.sheets
        self.capacity, self.count = len(sheets.done), 0
        self.held = min(held, self.capacity // 4)
        self._looked = 0.0
        self._pairs = [
            (getattr(sheets, name), torch.empty(getattr(sheets, name).shape, dtype=kind, device=device))
            for name, kind in [
                ("frames", torch.uint8), ("guides", torch.uint8), ("boxes", torch.int16), ("heard", torch.int32),
            ]
        ]  # fmt: skip
        self.frames, self.guides, self.boxes, self.heard = (tensor for _, tensor in self._pairs)

    def receive(self) -> None:
        """Takes over what has been drawn since, from time to time. Raises RuntimeError where drawing has failed."""
        if self.count == self.capacity or time.monotonic() - self._looked < _PAUSE:
            return
        self._painters.check()
        ready = self._painters.sheets.ready()
        for first in range(self.count, ready, _AT_ONCE):
            part = slice(first, min(first + _AT_ONCE, ready))
            for source, target in self._pairs:
                target[part].copy_(torch.from_numpy(source[part].copy()))
        self.count, self._looked = ready, time.monotonic()

    def wait_for(self, count: int, seconds: float) -> None:
        """Until so many clips are there or the time is over. Raises TimeoutError where none can be trained on."""
        end = time.monotonic() + seconds
        self.receive()
        while self.count < min(count, self.capacity) and time.monotonic() < end:
            time.sleep(0.1)
            self.receive()
        if self.count <= self.held:
            raise TimeoutError(f"only {self.count} clips were drawn within {seconds:.0f} s")
        print(f"{self.count} clips of {self.capacity}", flush=True)


def pixel_weights(boxes: Tensor, eyes: float, mouth: float) -> Tensor:
    """What pixels count, float32 [..., 128, 128]: 1, or `eyes` and `mouth` inside the boxes int16 [..., 2, 4]."""
    at = torch.arange(SIZE, device=boxes.device)
    top, bottom, left, right = (edge[..., None] for edge in boxes.unbind(-1))
    inside = ((at >= top) & (at < bottom))[..., :, None] & ((at >= left) & (at < right))[..., None, :]
    in_eyes, in_mouth = inside.float().unbind(-3)
    return (1 + (eyes - 1) * in_eyes) * (1 - in_mouth) + mouth * in_mouth
