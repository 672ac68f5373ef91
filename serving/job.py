"""A request from its arrival to its last answer."""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vexpress_trt.serving import protocol
from vexpress_trt.serving.errors import Refusal
from vexpress_trt.serving.limits import Limits
from vexpress_trt.serving.settings import Settings, check_request, parse_settings


class Answers(Protocol):
    """Where the answers of one request go."""

    def send(self, header: dict[str, Any], payload: bytearray) -> None:
        """One message of the worker's: `info`, `frame`, `chunk` or `done`. Raises Refusal where it cannot be passed."""

    def refuse(self, refusal: Refusal) -> None:
        """The request ends with an error; nothing more comes."""

    def end(self) -> None:
        """The request ends, well or because its client went away; nothing more comes."""

    def cancelled(self) -> bool:
        """Whether the client went away."""


@dataclass(eq=False)
class Job:
    """One accepted request."""

    portrait: bytes
    audio: bytes
    kps: bytes | None
    asked: Settings
    answers: Answers
    arrived: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls, portrait: bytes, audio: bytes, kps: bytes | None, settings: bytes, answers: Answers, limits: Limits
    ) -> "Job":
        """Check everything that needs no decoding. Raises Refusal (`invalid`)."""
        asked = parse_settings(settings)
        sizes = (
            ("portrait", len(portrait), protocol.MAX_PORTRAIT_BYTES),
            ("audio", len(audio), protocol.MAX_AUDIO_BYTES),
            ("key-point track", len(kps or b""), protocol.MAX_KPS_BYTES),
        )
        for name, size, most in sizes:
            if size > most:
                raise Refusal(protocol.INVALID, f"the {name} has {size} bytes, more than this server's {most}.")
            if not size and not (name == "key-point track" and kps is None):
                raise Refusal(protocol.INVALID, f"the {name} is empty.")
        check_request(asked.fields, has_kps=kps is not None)
        width, height = asked.fields.get("image_width"), asked.fields.get("image_height")
        if width and height:
            check_pixels(width, height, limits)
        return cls(portrait, audio, kps, asked, answers)

    def expired(self, limits: Limits) -> bool:
        return time.monotonic() - self.arrived > limits.timeout

    @contextmanager
    def message(self, limits: Limits) -> Iterator[dict[str, Any]]:
        """The job as the worker takes it; the inputs lie in a private folder for the length of the block."""
        with tempfile.TemporaryDirectory(prefix="vexpress-job-") as folder:
            # The runtime reads sound by its content; it only wants one of the known suffixes.
            files = {"reference_image_path": ("portrait", self.portrait), "audio_path": ("audio.wav", self.audio)}
            if self.kps is not None:
                files["kps_path"] = ("track.npy" if self.kps.startswith(b"\x93NUMPY") else "track.pth", self.kps)
            paths = {}
            for name, (file, content) in files.items():
                Path(folder, file).write_bytes(content)
                paths[name] = str(Path(folder, file))
            if self.asked.kps_fps is not None:
                Path(folder, "track.npy.json").write_text(json.dumps({"fps": self.asked.kps_fps}))
            self.portrait = self.audio = self.kps = b""  # on disk now
            yield {
                "kind": "job",
                "files": paths,
                "settings": self.asked.fields,
                "output": self.asked.output,
                "max_seconds": limits.max_seconds,
            }


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Raises Refusal (`invalid`) for frames that are too large."""
    if width * height > limits.max_pixels:
        raise Refusal(
            protocol.INVALID, f"{width}x{height} has more pixels than the {limits.max_pixels} of this server."
        )
