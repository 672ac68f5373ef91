"""The denoising loop on a device: calls are enqueued ahead, and the host only looks whether final frames have come.

One call is: gather latents, tokens, features and timesteps by the call's number -> denoiser -> fused step -> count on.
Nothing in it depends on the host, so it is captured once for each denoiser graph and replayed. Three streams run beside
one another: `feed` brings what new frames start from, `compute` has the calls, `leave` takes final frames out. Events
order them; the host runs up to AHEAD calls in front of the device, looks at events and sleeps in between.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np

from vexpress_trt.engines.closing import Closing
from vexpress_trt.engines.device_engine import DeviceEngine
from vexpress_trt.runtime.cuda import buffers
from vexpress_trt.runtime.cuda.buffers import call_shapes, loop_shapes, ring_shapes, table_shapes
from vexpress_trt.runtime.cuda.decoder import DeviceDecoder
from vexpress_trt.runtime.cuda.device import Buffer, Device, Event
from vexpress_trt.runtime.cuda.features import DeviceFeatures
from vexpress_trt.runtime.cuda.running import Replayed, require_running, wait_for
from vexpress_trt.runtime.cuda.schedule import Batch, Schedule
from vexpress_trt.runtime.scheduler import Scheduler
from vexpress_trt.runtime.stages import nonfinite
from vexpress_trt.runtime.windows import Call, WindowPlan, alike

AHEAD = 8  # batches that may be enqueued and not done

FinalFrames = list[tuple[int, np.ndarray]]


class FrameSource(Protocol):
    """What new frames start from."""

    def __call__(self, start: int, noise: np.ndarray, tokens: np.ndarray, features: np.ndarray | None) -> None:
        """Fill the rows of frames from `start` on: noise float32 [N, 4, h, w], tokens [N, 5, C], features
        [N, C0, h, w] or None where the device makes them."""


@dataclass(eq=False)
class _Enqueued:
    """A batch on its way: `done` happens when its final frames and the status are in pinned memory row `row`."""

    batch: Batch
    row: int
    done: Event


class DeviceLoop(Closing):
    """All buffers of a clip's loop, in one arena of a device, and the loop itself.

    Latents, tokens and features lie in rings of as many frames as are live at a time and one window more, so that a new
    window can be brought while the last one leaves: a clip's length costs no memory. Use as a context manager; leaving
    it waits for the device and frees everything.
    """

    def __init__(
        self,
        device: Device,
        denoiser: Callable[[int], DeviceEngine],
        *,
        plan: WindowPlan,
        scheduler: Scheduler,
        shape: tuple[int, ...],
        guidance_scale: float,
        live_windows: int,
        window_batch: int = 1,
        capture: bool = True,
        features: DeviceFeatures | None = None,
        decoder: DeviceDecoder | None = None,
    ) -> None:
        """`denoiser(step)` is the engine of a step, everything but what changes from call to call bound to it;
        `shape` [4, h, w] that of a latent. `capture=False` enqueues every call's parts one by one instead.
        `features`, which has rows for two windows, makes key-point features on the device; with `decoder` final frames
        leave as images. The loop closes the device. Raises UserError where memory is short."""
        self._device = device
        self._denoiser = denoiser
        self._plan = plan
        self._scheduler = scheduler
        self._shape = shape
        self._size = int(np.prod(shape))
        self._batch = window_batch
        self._frames = window_batch * plan.window
        self._capture = capture
        self._features = features
        self._decoder = decoder
        self._slots = plan.live_frames(min(live_windows + 1, plan.windows))
        self._most = plan.reach + 1
        self._schedule = Schedule(plan, scheduler, slots=self._slots, batch=window_batch, guidance_scale=guidance_scale)
        self._engines = list({id(engine): engine for engine in map(denoiser, range(scheduler.steps))}.values())
        self._runs: dict[int, Replayed] = {}
        self._recent: deque[Batch] = deque(maxlen=2 * buffers.PIECE)
        self._count = 0  # batches enqueued
        self._sound = 0  # frames whose latents are final and known to be finite
        try:
            self._allocate()
        except BaseException:
            self.close()
            raise

    def run(self, groups: Iterable[list[Call]], source: FrameSource) -> Iterator[tuple[list[Call], FinalFrames]]:
        """Every list of calls, once; yields (calls, final frames) for each list when the device has done it.

        Lists of up to `window_batch` calls that can run at once; final frames are (index, latent float32 [4, h, w]) in
        frame order. With a decoder they are (index, uint8 RGB [H, W, 3]) and come some calls later, the last ones with
        an empty list of calls. Raises UserError naming window and step when a prediction is not finite, or the window
        when the key-point features it was made from are not, CancelledError when an engine was cancelled.
        """
        on_way: deque[_Enqueued] = deque()
        batches = self._schedule.batches(alike(groups, self._denoiser))
        while piece := list(islice(batches, buffers.PIECE)):
            self._bring_tables(piece)
            for batch in piece:
                self._feed(batch, source, on_way)
                self._enqueue(batch)
                on_way.append(self._leave(batch, self._count % len(self._final)))
                self._recent.append(batch)
                self._count += 1
                while on_way and (len(on_way) >= AHEAD or self._device.happened(on_way[0].done)):
                    yield self._taken(on_way.popleft())
        while on_way:
            yield self._taken(on_way.popleft())
        if self._decoder is not None:
            for frames in self._decoder.rest():
                yield [], frames

    def close(self) -> None:
        """Wait for the device, then free all memory."""
        self._device.close()
        self._runs.clear()
        if self._decoder is not None:
            self._decoder.close()

    def _allocate(self) -> None:
        """The arena, pinned staging, streams and events."""
        device, plan, batch, shape = self._device, self._plan, self._batch, self._shape
        specs = [engine.spec for engine in self._engines]
        self._buffers = device.arena(
            loop_shapes(
                specs,
                plan=plan,
                shape=shape,
                slots=self._slots,
                batch=batch,
                steps=self._scheduler.steps,
                history=self._scheduler.remembers,
            )
        )
        window, float32, int32 = plan.window, np.dtype(np.float32), np.dtype(np.int32)
        rings = ring_shapes(specs[0], plan, shape, self._slots)
        if self._features is not None:
            del rings["kps_feature"]
        tables = table_shapes(plan, batch)
        self._tables = {name: device.pinned(*entry) for name, entry in tables.items()}
        self._staging = {name: device.pinned((2 * window, *of[1:]), dtype) for name, (of, dtype) in rings.items()}
        self._staged: deque[tuple[range, Event]] = deque()
        self._final = device.pinned((AHEAD + 1, window, *self._shape), float32)
        self._status = device.pinned((AHEAD + 1, 1), int32)
        self._compute, self._feeding, self._leaving = device.stream(), device.stream(), device.stream()
        self._stepped, self._fed = device.event(), device.event()
        self._done = [device.event() for _ in range(AHEAD + 1)]
        self._free_events: list[Event] = []
        timesteps = device.pinned((self._scheduler.steps,), float32)
        timesteps[:] = self._scheduler.timesteps
        device.upload(timesteps, self._buffers["timesteps"], self._feeding)
        self._timesteps = timesteps
        call = call_shapes(specs[0], plan, shape, batch)
        for engine in self._engines:
            prediction = device.part(self._buffers["prediction"], 0, (batch, _halves(engine), window, *shape))
            engine.bind_buffers(
                **{name: self._buffers[name] for name in call}, **{engine.spec.outputs[0].name: prediction}
            )
            body = partial(self._call, engine)
            self._runs[id(engine)] = Replayed(engine, self._compute, body, capture=self._capture)

    def _bring_tables(self, piece: list[Batch]) -> None:
        """The tables of the next batches, into the half that those two pieces before had: all done by now."""
        first = self._count % (2 * buffers.PIECE)
        for name, array in self._tables.items():
            each = len(array) // (2 * buffers.PIECE)
            rows = array[first * each : (first + len(piece)) * each]
            rows.reshape(len(piece), -1)[:] = [getattr(batch, name).reshape(-1) for batch in piece]
            self._device.upload(rows, self._part(name, first * each, rows.shape), self._feeding)
        self._device.record(self._fed, self._feeding)
        self._device.wait(self._compute, self._fed)
        if first == 0:
            self._device.clear(self._buffers["batch cursor"], self._compute)
            self._device.clear(self._buffers["call cursor"], self._compute)

    def _feed(self, batch: Batch, source: FrameSource, on_way: Iterable[_Enqueued]) -> None:
        """Bring what the frames that are first needed by a batch start from."""
        if not batch.enter:
            return
        freed = batch.enter.stop - self._slots  # frames before this one had the slots
        for earlier in on_way:
            if earlier.batch.final and earlier.batch.final.start < freed:
                self._device.wait(self._feeding, earlier.done)
        for frames in _spans(batch.enter, len(self._staging["latents"])):
            rows = slice(frames.start % (2 * self._plan.window), None)
            self._make_room(frames)
            staged = {name: array[rows][: len(frames)] for name, array in self._staging.items()}
            source(frames.start, staged["latents"], staged["tokens"], staged.get("kps_feature"))
            for part in _spans(frames, self._slots):
                for name, array in staged.items():
                    values = array[part.start - frames.start :][: len(part)]
                    target = self._part(f"ring {name}", part.start % self._slots, values.shape)
                    self._device.upload(values, target, self._feeding)
            if self._features is not None:
                self._features.enqueue(frames, self._place_of_feature, self._feeding)
            event = self._free_events.pop() if self._free_events else self._device.event()
            self._device.record(event, self._feeding)
            self._device.wait(self._compute, event)
            self._staged.append((frames, event))

    def _make_room(self, frames: range) -> None:
        """Wait until what the frames' staging rows held before has been copied."""
        held = 2 * self._plan.window
        while self._staged and self._staged[0][0].start + held < frames.stop:
            _, event = self._staged.popleft()
            wait_for(self._device, event, self._engines)
            self._free_events.append(event)

    def _enqueue(self, batch: Batch) -> None:
        """One batch of calls on the compute stream.

        No denoiser is captured before all have run once: what a run takes while it warms up is given back before a
        capture, but would be taken beside the memory that a captured one keeps.
        """
        require_running(self._engines)
        cold = not all(run.warm for run in self._runs.values())
        self._runs[id(self._denoiser(batch.calls[0][1]))].enqueue(later=cold)
        self._device.record(self._stepped, self._compute)

    def _call(self, engine: DeviceEngine) -> None:
        """Enqueue the parts of one batch; what they work on is looked up on the device."""
        kernels, stream, at = self._device.kernels, self._compute, self._at
        window, size, batch = self._plan.window, self._size, self._batch
        numbered = at("slots"), at("batch cursor")
        kernels.gather_latents(
            at("ring latents"), *numbered, at("latents"), self._frames, size, self._slots + 1,
            self._buffers["latents"].dtype.name, stream,
        )  # fmt: skip
        for name in ("tokens", "kps_feature"):
            row = int(np.prod(self._buffers[name].shape[2:])) * self._buffers[name].dtype.itemsize
            kernels.gather_rows(at(f"ring {name}"), *numbered, at(name), self._frames, row, stream)
        kernels.gather_rows(at("timesteps"), at("steps"), at("batch cursor"), at("timestep"), batch, 4, stream)
        engine.enqueue(stream)
        halves, prediction = _halves(engine), self._buffers["prediction"]
        for row in range(batch):
            one = self._device.part(prediction, row * halves * window * size, (halves, window, size))
            kernels.step_window(
                self._device.address(one), prediction.dtype.name, halves, window, size,
                at("ring latents"), at("pending"), self._most, at("history") if "history" in self._buffers else None,
                at("places"), at("weights"), at("call cursor"), at("status"), stream,
            )  # fmt: skip
            kernels.advance(at("call cursor"), stream)
        kernels.advance(at("batch cursor"), stream)

    def _leave(self, batch: Batch, row: int) -> _Enqueued:
        """Enqueue the copies of a batch's final frames and of the status."""
        device, stream = self._device, self._leaving
        device.wait(stream, self._stepped)
        for part in _spans(batch.final, self._slots) if self._decoder is None else ():
            target = self._final[row][part.start - batch.final.start :][: len(part)]
            device.download(self._part("ring latents", part.start % self._slots, target.shape), target, stream)
        device.download(self._buffers["status"], self._status[row], stream)
        if self._decoder is not None:
            for frame in batch.final:
                latent = self._part("ring latents", frame % self._slots, (1, *self._shape))
                self._decoder.take(frame, latent, stream)
        device.record(self._done[row], stream)
        return _Enqueued(batch, row, self._done[row])

    def _taken(self, enqueued: _Enqueued) -> tuple[list[Call], FinalFrames]:
        """What a batch gave, when the device has done it."""
        wait_for(self._device, enqueued.done, self._engines)
        self._require_finite(int(self._status[enqueued.row, 0]))
        if self._decoder is not None:
            self._sound = enqueued.batch.final.stop if enqueued.batch.final else self._sound
            return enqueued.batch.calls, self._decoder.finished(self._sound)
        frames = zip(enqueued.batch.final, self._final[enqueued.row], strict=False)
        return enqueued.batch.calls, [(frame, latent.copy()) for frame, latent in frames]

    def _require_finite(self, status: int) -> None:
        """`status` is the number of a call in the tables, plus 1; or 0."""
        if status == 0:
            return
        number, row = divmod(status - 1, self._batch)
        batch = self._recent[-1 - (self._count - 1 - number) % (2 * buffers.PIECE)]
        engine = self._denoiser(batch.calls[0][1])
        window, step = batch.calls[min(row, len(batch.calls) - 1)]
        if self._features is not None:
            self._features.require_finite(range(*self._plan.span(window)), f"window {window}", self._feeding)
        raise nonfinite(engine.spec.name, f"prediction of window {window}, step {step}")

    def _at(self, name: str) -> Any:
        return self._device.address(self._buffers[name])

    def _place_of_feature(self, frame: int) -> Buffer:
        shape = self._buffers["ring kps_feature"].shape[1:]
        return self._part("ring kps_feature", frame % self._slots, (1, *shape))

    def _part(self, name: str, row: int, shape: tuple[int, ...]) -> Buffer:
        """Rows of a buffer from `row` on, as many as `shape` says."""
        return self._device.part(self._buffers[name], row * int(np.prod(shape[1:])), shape)


def _halves(engine: DeviceEngine) -> int:
    return engine.spec.outputs[0].shape[1]


def _spans(frames: range, slots: int) -> Iterator[range]:
    """The frames in runs that lie in neighbouring ones of so many slots."""
    start = frames.start
    while start < frames.stop:
        stop = min(frames.stop, start - start % slots + slots)
        yield range(start, stop)
        start = stop
