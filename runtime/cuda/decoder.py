"""Decoding on a device: final latents in, finished frames out; the host only ever receives uint8.

One frame is: scale -> decoder -> bytes -> 3x3x3 median with its neighbours in time. Latents wait in a ring of their
own, so that the loop may reuse its slots. Two streams run beside the loop's: `decode` has the work, `leave` takes
finished frames into pinned memory. The decoder's run is captured before the first frame and replayed.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from vexpress_trt.engines.device_engine import DeviceEngine
from vexpress_trt.runtime.cuda.buffers import IMAGES, decoder_shapes
from vexpress_trt.runtime.cuda.device import Buffer, Device, Event
from vexpress_trt.runtime.cuda.running import Replayed, require_running, wait_for
from vexpress_trt.runtime.stages import nonfinite

ROOM = 8  # frames that may be on their way, from their latent's arrival to pinned memory

FinishedFrames = list[tuple[int, np.ndarray]]


@dataclass(eq=False)
class _Leaving:
    """Frame number `frame` on its way into pinned row `row`; there when `done` happens."""

    frame: int
    row: int
    done: Event


class DeviceDecoder:
    """The decoder and the median filter of a clip on a device, frame by frame in order.

    What is enqueued here depends on the host for nothing but room: when `room` frames are on their way, the oldest is
    waited for. The bits are those of `stages.decode`, `quantised` and `filtered` with the same engine.
    """

    def __init__(
        self,
        device: Device,
        engine: DeviceEngine,
        *,
        length: int,
        shape: tuple[int, ...],
        scaling: float,
        room: int = ROOM,
        capture: bool = True,
    ) -> None:
        """`engine`: the graph `vae_decoder`. `length`: how many frames the clip has; later ones are passed over.
        `shape` [4, h, w] and `scaling` are those of the latents; `room`, 3 or more, frames can be on their way. The
        device stays the caller's."""
        self._device = device
        self._engine = engine
        self._length = length
        self._shape = shape
        self._scaling = float(np.float32(scaling))
        self._room = room
        self._on_way: deque[_Leaving] = deque()
        self._finished: deque[tuple[int, np.ndarray]] = deque()
        self._unsound: int | None = None  # the first frame with a value that is not finite
        shapes = decoder_shapes(engine.spec, shape, room)
        self._height, self._width = shapes["image"][0][2:]
        self._buffers = device.arena(shapes)
        self._rows = device.pinned(*shapes["filtered"])
        self._notes = device.pinned(*shapes["status"])
        self._staging = device.pinned(*shapes["waiting"])
        self._decoding, self._leaving = device.stream(), device.stream()
        self._arrived = [device.event() for _ in range(room)]
        self._made = [device.event() for _ in range(room)]
        self._done = [device.event() for _ in range(room)]
        self._run = Replayed(engine, self._decoding, partial(engine.enqueue, self._decoding), capture=capture)
        engine.bind_buffers(latents=self._buffers["latents"], image=self._buffers["image"])
        self._run.prepare()

    def take(self, frame: int, latent: Buffer, stream: int) -> None:
        """Enqueue a frame whose final latent [4, h, w] is in device memory when `stream` comes to it; the memory may be
        reused behind that point of the stream. Frames come in order. Waits while there is no room.

        Raises CancelledError when the engine was cancelled.
        """
        self._take(frame, stream, lambda waiting: self._device.copy(latent, waiting, stream))

    def take_from_host(self, frame: int, latent: np.ndarray) -> None:
        """As `take`, for a latent on the host."""

        def bring(waiting: Buffer) -> None:
            staged = self._staging[frame % self._room]
            staged[...] = latent
            self._device.upload(staged, waiting, self._leaving)

        self._take(frame, self._leaving, bring)

    def finished(self, sound: int | None = None) -> FinishedFrames:
        """What has arrived since the last call, (frame, uint8 RGB [H, W, 3]) in order. Does not wait.

        Raises UserError where an image is not finite; with `sound` only for a frame before that one, whose latents the
        caller knows to be finite. An image that is not, and later ones, are never given."""
        while self._on_way and self._device.happened(self._on_way[0].done):
            self._receive()
        return self._given(self._length if sound is None else sound)

    def rest(self) -> Iterator[FinishedFrames]:
        """What is still on its way, all latents being taken. Raises UserError as `finished`."""
        while self._on_way:
            wait_for(self._device, self._on_way[0].done, [self._engine])
            self._receive()
            yield self._given(self._length)

    def close(self) -> None:
        """Free what was captured, once none of it is on its way: the decoder itself may live on for long in the frames
        of an exception."""
        self._run = None

    def _take(self, frame: int, stream: int, bring: Callable[[Buffer], None]) -> None:
        if frame >= self._length:
            return
        require_running([self._engine])
        while len(self._on_way) >= self._room - 1:  # then the frame that had this one's rows before has been received
            wait_for(self._device, self._on_way[0].done, [self._engine])
            self._receive()
        device, slot = self._device, frame % self._room
        bring(self._part("waiting", slot, self._shape))
        device.record(self._arrived[slot], stream)
        device.wait(self._decoding, self._arrived[slot])
        self._decode(frame)
        if frame > 0:
            self._filter(frame - 1)
        if frame == self._length - 1:
            self._filter(frame)

    def _decode(self, frame: int) -> None:
        device, kernels, stream, slot = self._device, self._device.kernels, self._decoding, frame % self._room
        at = device.address
        waiting, latents = self._part("waiting", slot, self._shape), self._buffers["latents"]
        kernels.unscale(at(waiting), self._scaling, at(latents), int(np.prod(self._shape)), stream)
        self._run.enqueue()
        image, status = self._buffers["image"], self._part("status", slot, (1,))
        device.clear(status, stream)
        rgb = self._rgb(frame)
        kernels.to_rgb8(at(image), image.dtype.name, self._height, self._width, at(rgb), stream, at(status))

    def _filter(self, frame: int) -> None:
        """Enqueue a frame's median, its neighbours in time being decoded, and its way to the host."""
        device, row, last = self._device, frame % self._room, self._length - 1
        before, after = frame - 1, frame + 1
        if frame == 0:
            before = min(after, last)  # mirrored at the clip's ends
        if frame == last:
            after = max(before, 0)
        out = self._part("filtered", row, (self._height, self._width, 3))
        neighbours = [device.address(self._rgb(number)) for number in (before, frame, after)]
        device.kernels.median(*neighbours, device.address(out), self._height, self._width, self._decoding)
        device.record(self._made[row], self._decoding)
        device.wait(self._leaving, self._made[row])
        device.download(out, self._rows[row], self._leaving)
        device.download(self._part("status", row, (1,)), self._notes[row], self._leaving)
        device.record(self._done[row], self._leaving)
        self._on_way.append(_Leaving(frame, row, self._done[row]))

    def _receive(self) -> None:
        leaving = self._on_way.popleft()
        if self._notes[leaving.row, 0] and self._unsound is None:
            self._unsound = leaving.frame
        if self._unsound is None:
            self._finished.append((leaving.frame, self._rows[leaving.row].copy()))

    def _given(self, sound: int) -> FinishedFrames:
        if self._unsound is not None and self._unsound < sound:
            raise nonfinite(self._engine.spec.name, f"image of frame {self._unsound}")
        given = list(self._finished)
        self._finished.clear()
        return given

    def _rgb(self, frame: int) -> Buffer:
        return self._part("rgb", frame % IMAGES, (self._height, self._width, 3))

    def _part(self, name: str, row: int, shape: tuple[int, ...]) -> Buffer:
        return self._device.part(self._buffers[name], row * int(np.prod(shape)), shape)
