"""The output's 3x3x3 median filter (time, row, column; per colour), streaming with one frame of look-ahead."""

from collections.abc import Iterable, Iterator

import numpy as np

from vexpress_trt.runtime.compiled import native_module


def median_clip(clip: np.ndarray, *, threads: int = 0) -> np.ndarray:
    """Filters a whole clip uint8 [T, H, W, 3]; equals `scipy.ndimage.median_filter(clip, (3, 3, 3, 1), mode="mirror")`.

    Neighbours outside are mirrored at the edge, in time as well: what stands before frame 0 is frame 1 (the golden
    arrays say so). `threads` 0 takes as many as the process may use. The filter commutes with rising functions, so
    truncating to uint8 first gives what filtering floats would (golden README, section 4, "Decode").
    """
    clip = np.ascontiguousarray(clip)
    out = np.empty_like(clip)
    native_module().median_3x3x3_clip(clip, out, threads)
    return out


def filtered(frames: Iterable[np.ndarray], *, threads: int = 0) -> Iterator[np.ndarray]:
    """Filters frames as they come: each uint8 [H, W, 3] leaves when its successor is there, the last one at the end.

    Holds three frames however long the clip is. The frames given out are new arrays; those taken in must stay
    unchanged until two more were taken. Raises ValueError where a frame's shape differs from the one before.
    """
    median = native_module().median_3x3x3

    def of(before: np.ndarray, frame: np.ndarray, after: np.ndarray) -> np.ndarray:
        out = np.empty_like(frame)
        median(before, frame, after, out, threads)
        return out

    previous = current = None
    for following in frames:
        following = np.ascontiguousarray(following)
        if current is not None:
            yield of(following if previous is None else previous, current, following)
        previous, current = current, following
    if current is not None:
        edge = current if previous is None else previous
        yield of(edge, current, edge)
