"""Containers being written, closed whatever happens."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import av


class Writable(Protocol):
    """Where a container goes that is not a file: bytes in order, no way back."""

    def write(self, data: bytes) -> int:
        """Take all of `data`; returns how many bytes that was."""


@contextmanager
def muxer(
    place: Path | Writable, form: str, options: Mapping[str, str] | None = None
) -> Iterator[av.container.OutputContainer]:
    """A container in FFmpeg's format `form`, with options of its muxer.

    Whatever goes wrong in the block is not hidden by what then goes wrong in closing the container.
    """
    output = av.open(f"file:{place}" if isinstance(place, Path) else place, "w", format=form, options=options)
    try:
        yield output
    except BaseException:
        with suppress(av.FFmpegError, OSError):
            output.close()
        raise
    output.close()
