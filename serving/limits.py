"""The limits that requests live under, with the defaults of the flags."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a server accepts. Seconds; `queue` counts requests that wait, None is four for each worker."""

    queue: int | None = None
    timeout: float = 3600.0
    max_seconds: float = 600.0
    max_pixels: int = 1024 * 1024
    drain: float = 600.0
    worker_memory: int = 0  # MiB that a worker may hold between requests; 0 is no limit
    clip_memory: int = 2048  # MiB of all frames of a clip that is sent as frames
    held: int = 8192  # MiB of answers that Triton may hold when another request comes; 0 is no limit
