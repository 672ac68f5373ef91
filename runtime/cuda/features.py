"""Key-point features on a device: points go in, guide images are drawn and the guider runs there."""

from collections.abc import Callable

import numpy as np

from vexpress_trt.engines.call_sizes import CHUNK
from vexpress_trt.engines.device_engine import DeviceEngine
from vexpress_trt.runtime.cuda.buffers import feature_shapes
from vexpress_trt.runtime.cuda.device import Buffer, Device
from vexpress_trt.runtime.cuda.running import wait_for
from vexpress_trt.runtime.stages import require_finite


class DeviceFeatures:
    """The guider's features of new frames, CHUNK at a time, enqueued without waiting.

    Guide images and features are those of `stages.KeypointFeatures` with the same engine, bit for bit.
    """

    def __init__(
        self, device: Device, guider: DeviceEngine, points: np.ndarray, *, shape: tuple[int, ...], rows: int
    ) -> None:
        """`points`: float [L, 3, 2] in output pixels, the frames' key points. `shape` [4, h, w] is that of a latent;
        points of `rows` frames can be on their way. The device stays the caller's."""
        self._device = device
        self._guider = guider
        self._points = points
        self._rows = rows
        shapes = feature_shapes(guider.spec, shape, rows, points.dtype)
        self._buffers = device.arena(shapes)
        self._staging = device.pinned(*shapes["points"])
        guider.bind_buffers(rgb=self._buffers["rgb"], feature=self._buffers["feature"])

    def enqueue(self, frames: range, place: Callable[[int], Buffer], stream: int) -> None:
        """Compute the features of neighbouring frames; `place(frame)` is where one goes, [C0, h, w].

        Their points take rows frame modulo `rows`, which must be neighbours too and not be on their way any more."""
        first = frames.start % self._rows
        staged = self._staging[first : first + len(frames)]
        staged[...] = self._points[frames.start : frames.stop]
        self._device.upload(staged, self._part("points", first, len(frames)), stream)
        for start in range(frames.start, frames.stop, CHUNK):
            chunk = range(start, min(start + CHUNK, frames.stop))
            self._draw(start % self._rows, len(chunk), stream)
            self._guider.enqueue(stream)
            for row, frame in enumerate(chunk):
                self._device.copy(self._part("feature", row, 1), place(frame), stream)

    def require_finite(self, frames: range, where: str, stream: int) -> None:
        """Compute the features of frames once more and look at them on the host: for when what read them was not
        finite, since looking at each as it is made would cost the host a wait.

        Raises UserError that names the guider, the frames and `where` they are read, if it was the guider's fault."""
        features = self._device.pinned(self._buffers["feature"].shape, self._buffers["feature"].dtype)
        computed = self._device.event()
        for start in range(frames.start, frames.stop, CHUNK):
            chunk = range(start, min(start + CHUNK, frames.stop))
            staged = self._staging[: len(chunk)]
            staged[...] = self._points[chunk.start : chunk.stop]
            self._device.upload(staged, self._part("points", 0, len(chunk)), stream)
            self._draw(0, len(chunk), stream)
            self._guider.enqueue(stream)
            self._device.download(self._buffers["feature"], features, stream)
            self._device.record(computed, stream)
            wait_for(self._device, computed, [self._guider])
            what = f"feature of frames {chunk.start}-{chunk.stop - 1}, {where}"
            require_finite(features[: len(chunk)], self._guider.spec.name, what)

    def _draw(self, row: int, count: int, stream: int) -> None:
        """CHUNK guide images, the last of `count` repeated."""
        device, rgb = self._device, self._buffers["rgb"]
        device.kernels.draw_keypoints(
            device.address(self._part("points", row, count)), count, *rgb.shape[2:], device.address(rgb),
            rgb.dtype.name, stream, self._points.dtype.name,
        )  # fmt: skip
        for filler in range(count, CHUNK):
            device.copy(self._part("rgb", count - 1, 1), self._part("rgb", filler, 1), stream)

    def _part(self, name: str, row: int, count: int) -> Buffer:
        buffer = self._buffers[name]
        return self._device.part(buffer, row * int(np.prod(buffer.shape[1:])), (count, *buffer.shape[1:]))
