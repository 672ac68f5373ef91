"""The process that generates: one clip at a time, on one device, with engines that stay loaded.

    python -m vexpress_trt.serving.worker --connection FD --options JSON

It is started by `worker_process.WorkerProcess` and speaks `messages` over the inherited socket FD:

* it sends `ready` once, or `unusable` with a sentence when it cannot ever generate;
* it receives `job` (paths of the inputs, settings, kind of output, limits);
* it answers with `started`, from when on it can be cancelled, then `info`, then `frame` or `chunk` messages as the
  runtime yields, then `done` with the summary, or ends with `refused` (a code and a sentence) or `cancelled`.

SIGUSR1 cancels the clip in progress, within one call of a network. The process ends when its standard input does: that
is how it notices the death of its parent.
"""

import argparse
import contextlib
import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.selection import WISHES, choose_engines
from vexpress_trt.runtime.engine_pool import EnginePool
from vexpress_trt.runtime.generation import Frame, Generation, generate
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.runtime.request_json import field_value
from vexpress_trt.runtime.video_output import VideoWriter, choose_encoder, encode
from vexpress_trt.serving import messages, protocol

log = logging.getLogger("vexpress")
_PATH = re.compile(r"(?<![\w/.])(?:/[^\s/:;,()`'\"]+){2,}")


class _Cancelled(BaseException):
    """The clip in progress is not wanted any more; a BaseException, so that nothing below takes it for a failure."""


class _CancelSignal:
    """SIGUSR1 raises `_Cancelled` in the main thread, but only inside an `interruptible` block."""

    def __init__(self) -> None:
        self._inside = False
        self._given = False
        signal.signal(signal.SIGUSR1, self._received)

    def forget(self) -> None:
        """Drop a signal that was meant for an earlier clip."""
        self._given = False

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        self._inside = True
        try:
            if self._given:
                raise _Cancelled
            yield
        finally:
            self._inside = False

    def _received(self, number: int, frame: Any) -> None:
        self._given = True
        if self._inside:
            self._inside = False  # a second signal does not disturb the unwinding
            raise _Cancelled


@dataclass(frozen=True)
class Worker:
    """Answers jobs on a connection. `options`: fields of the request that are the server's own."""

    connection: socket.socket
    options: dict[str, Any]
    engines: EnginePool
    cancel: _CancelSignal

    @property
    def _own(self) -> list[str]:
        places = (str(self.options.get(name, "")) for name in ("bundle", "face_model_dir", "portrait_cache"))
        return [place for place in (*places, tempfile.gettempdir()) if os.path.isabs(place)]

    def serve(self) -> None:
        """Until the other side goes away."""
        while True:
            job, _ = messages.receive(self.connection)
            self.cancel.forget()
            messages.send(self.connection, {"kind": "started"})
            messages.send(self.connection, self._answer(job))

    def _answer(self, job: dict[str, Any]) -> dict[str, Any]:
        """Generate one clip; the closing message."""
        try:
            return {"kind": "done", "summary": self._generate(job)}
        except _Cancelled:
            return {"kind": "cancelled"}
        except UserError as problem:
            sentence = without_paths(str(problem), job, self._own)
            return {"kind": "refused", "code": protocol.INVALID, "sentence": sentence}
        except messages.Disconnected:
            raise
        except Exception as problem:
            log.exception("a clip failed")
            sentence = f"internal error ({type(problem).__name__})."
            return {"kind": "refused", "code": protocol.FAILED, "sentence": sentence}

    def _generate(self, job: dict[str, Any]) -> dict[str, Any]:
        request = GenerationRequest(**job["files"], **job["settings"], **self.options)
        with self.cancel.interruptible():
            generation = generate(request, engines=self.engines)
        clip = generation.clip
        if clip.length > job["max_seconds"] * clip.fps:
            raise UserError(
                f"the audio lasts {clip.length / clip.fps:.1f} s, more than this server's {job['max_seconds']:g} s: "
                "send shorter speech."
            )
        rate = Fraction(clip.fps).limit_denominator(100_000)
        info = {
            "frames": clip.length,
            "width": clip.width,
            "height": clip.height,
            "fps": clip.fps,
            "fps_fraction": f"{rate.numerator}/{rate.denominator}",
            "version": protocol.VERSION,
        }
        wants_video = job["output"] == protocol.OUTPUT_MP4
        encoder = choose_encoder(request.encoder, clip.width, clip.height) if wants_video else None
        messages.send(self.connection, {"kind": "info", "info": info})
        if encoder:
            self._send_video(generation, encoder)
        else:
            for frame in self._frames(generation):
                made_at, pixels = time.monotonic(), np.ascontiguousarray(frame.image)
                header = {"index": frame.index, "time": frame.time, "made_at": made_at, "shape": pixels.shape}
                messages.send(self.connection, {"kind": "frame", **header}, pixels.data.cast("B"))
        return {**generation.summary.as_dict(), "encoder": encoder}

    def _send_video(self, generation: Generation, encoder: str) -> None:
        clip = generation.clip
        sound = {"audio_path": generation.request.audio_path, "frames": clip.length}
        sink = _Chunks(self.connection)
        writer = VideoWriter(sink, clip.width, clip.height, clip.fps, encoder=encoder, **sound)
        encode(self._frames(generation), writer, generation.watch)

    def _frames(self, generation: Generation) -> Iterator[Frame]:
        with contextlib.closing(iter(generation)) as frames:
            while True:
                with self.cancel.interruptible():
                    frame = next(frames, None)
                if frame is None:
                    return
                yield frame


class _Chunks:
    """A stream whose writes become `chunk` messages."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._index = 0

    def write(self, data: bytes) -> int:
        header = {"kind": "chunk", "index": self._index, "made_at": time.monotonic()}
        messages.send(self._connection, header, memoryview(data).cast("B"))
        self._index += 1
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


def without_paths(sentence: str, job: dict[str, Any], own: Iterable[str] = ()) -> str:
    """A sentence of the runtime's, with the inputs named by what they are instead of where they lie here, and no other
    path of this machine's either. `own`: folders of the server's, which may have spaces in them."""
    names = {"reference_image_path": "the portrait", "audio_path": "the audio", "kps_path": "the key-point track"}
    for field, path in job["files"].items():
        for doubled in (f"{names[field]} {path}", path):
            sentence = sentence.replace(doubled, names[field])
    for path in own:  # becomes a path without spaces, so that the last line also takes what lies below it
        sentence = re.sub(rf"(?<![\w/.]){re.escape(path)}(?!\w)", "/of/ours", sentence)
    return _PATH.sub("(a path of the server's)", sentence)


def _end_with_parent() -> None:
    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)  # a reader inside Python's buffer would abort the interpreter's end
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """Serve until the parent goes; exit status 0 then, 2 when no clip can ever be made."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--connection", type=int, required=True)
    parser.add_argument("--options", type=json.loads, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="vexpress worker: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cancel = _CancelSignal()
    _end_with_parent()
    options = {name: field_value(name, value) for name, value in args.options.items()}
    with socket.socket(fileno=args.connection) as connection, contextlib.suppress(messages.Disconnected):
        try:
            choose_engines(
                Bundle.open(options["bundle"]), **{name: options[name] for name in WISHES if name in options}
            )
        except UserError as problem:
            messages.send(connection, {"kind": "unusable", "sentence": str(problem)})
            return 2
        messages.send(connection, {"kind": "ready"})
        with EnginePool() as engines:
            Worker(connection, options, engines, cancel).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
