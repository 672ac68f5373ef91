"""An engine's work on a device's stream, and waiting for it: what the loop and the decoder have in common."""

import time
from collections.abc import Callable, Iterable

from vexpress_trt.engines.device_engine import DeviceEngine
from vexpress_trt.engines.engine import CancelledError
from vexpress_trt.runtime.cuda.device import POLL_SECONDS, Device, Event


class Replayed:
    """Work with an engine, the same each time: at first part by part, which warms it up, then captured and replayed."""

    def __init__(self, engine: DeviceEngine, stream: int, body: Callable[[], None], *, capture: bool) -> None:
        """`body` enqueues the work on `stream`; with `capture=False` it does so every time."""
        self._engine = engine
        self._stream = stream
        self._body = body
        self._capture = capture
        self.warm = False
        self._replay: Callable[[], None] | None = None

    def prepare(self) -> None:
        """Warm it up and capture it, if it is captured at all, while nothing else is on its way: torch waits for the
        whole GPU before a capture."""
        if self._capture:
            self.enqueue()
            self._replay = self._engine.capture(self._stream, self._body)

    def enqueue(self, *, later: bool = False) -> None:
        """`later`: do not capture yet, for the sake of others that are not warm."""
        if self._replay is None and self._capture and self.warm and not later:
            self._replay = self._engine.capture(self._stream, self._body)
        (self._replay or self._body)()
        self.warm = True


def require_running(engines: Iterable[DeviceEngine]) -> None:
    """Raises CancelledError where one of the engines was cancelled."""
    for engine in engines:
        if engine.cancelled:
            raise CancelledError(f"{engine.spec.name} was cancelled")


def wait_for(device: Device, event: Event, engines: Iterable[DeviceEngine]) -> None:
    """Look at an event, and sleep in between, until it has happened. Raises CancelledError as `require_running`."""
    while not device.happened(event):
        require_running(engines)
        time.sleep(POLL_SECONDS)
