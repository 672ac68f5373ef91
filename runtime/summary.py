"""What a finished generation says about itself."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Summary:
    """The closing figures of one clip. Times are seconds of wall clock, memory is the process's peak in MiB; that of a
    GPU is the most that was seen between stages, CUDA's own part of it estimated where the driver does not tell what is
    this process's, and None where none is used."""

    output_path: str | None
    frames: int
    width: int
    height: int
    fps: float
    duration_seconds: float
    strategy: str
    backend: str
    backend_reason: str
    precision: str
    dtype: str
    seed: int
    num_inference_steps: int
    solver: str
    guidance_scale: float
    guided_steps: int
    context_frames: int
    context_overlap: int
    windows: int
    window_batch: int
    portrait_cached: bool
    denoiser_calls: int  # windows times steps; a call may serve `window_batch` of them
    denoiser_calls_before_first_frame: int
    stage_seconds: dict[str, float]
    time_to_first_frame: float
    total_seconds: float
    frames_per_second: float
    peak_memory_mib: float
    random_weights: bool
    peak_gpu_memory_mib: float | None = None
    encoder: str | None = None  # of the file, where one was written

    def as_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """A few lines for a person."""
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.stage_seconds.items())
        gpu = "" if self.peak_gpu_memory_mib is None else f", of the GPU about {self.peak_gpu_memory_mib:.0f} MiB"
        lines = [
            f"{self.frames} frames of {self.width}x{self.height} at {self.fps:g} frames/s "
            f"({self.duration_seconds:.2f} s), strategy {self.strategy}, seed {self.seed}",
            f"{self.backend} {self.dtype} ({self.backend_reason})",
            f"{self.total_seconds:.1f} s in all, {self.frames_per_second:.2f} frames/s; first frame after "
            f"{self.time_to_first_frame:.1f} s ({self.denoiser_calls_before_first_frame} of {self.denoiser_calls} "
            f"denoiser calls); peak memory {self.peak_memory_mib:.0f} MiB{gpu}",
            f"seconds per stage: {stages}",
        ]
        if self.random_weights:
            lines.append("this bundle's weights are random: the picture is coloured noise")
        if self.output_path:
            done = "streamed" if self.output_path == "-" else f"wrote {self.output_path}"
            lines.append(done + (f" ({self.encoder})" if self.encoder else ""))
        return "\n".join(lines)


class Stopwatch:
    """Wall-clock seconds by stage name, in the order in which the stages first ended.

    Stages may run on any threads. Within one thread they nest: time in an inner stage counts for that one alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._nested = threading.local()  # .inner: seconds that stages inside the present one have taken
        self.started = perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside the `with` block to stage `name`."""
        outer, self._nested.inner = getattr(self._nested, "inner", 0.0), 0.0
        begin = perf_counter()
        try:
            yield
        finally:
            seconds = perf_counter() - begin
            own, self._nested.inner = seconds - self._nested.inner, outer + seconds
            with self._lock:
                self.seconds[name] = self.seconds.get(name, 0.0) + own

    def timed(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time it takes to make each one is added to stage `name`."""
        iterator = iter(items)
        while True:
            with self.stage(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    @property
    def elapsed(self) -> float:
        """Seconds since the watch was made."""
        return perf_counter() - self.started
