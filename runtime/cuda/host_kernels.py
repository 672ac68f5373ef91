"""The kernels' arithmetic on the CPU, compiled from the headers the kernels are compiled from."""

import numpy as np

from vexpress_trt.runtime.compiled import native_module


class HostKernels:
    """As `Kernels`, with NumPy arrays where that takes pointers, and at once.

    Arrays are C-contiguous; those in float16 and bfloat16 may have any type of two bytes. Raises ValueError where an
    array is smaller than the sizes say or a table names what is not there.
    """

    def __init__(self) -> None:
        """Raises UserError where the native module is missing."""
        self._native = native_module().host_kernels

    def gather_latents(
        self,
        ring: np.ndarray,
        table: np.ndarray,
        cursor: np.ndarray,
        out: np.ndarray,
        frames: int,
        size: int,
        slots: int,
        out_dtype: str,
        stream: int = 0,
    ) -> None:
        """See `Kernels.gather_latents`."""
        self._native.gather_latents(*_bytes(ring, table, cursor, out), frames, size, slots, out_dtype)

    def gather_rows(
        self,
        ring: np.ndarray,
        table: np.ndarray,
        cursor: np.ndarray,
        out: np.ndarray,
        frames: int,
        row_bytes: int,
        stream: int = 0,
    ) -> None:
        """See `Kernels.gather_rows`."""
        self._native.gather_rows(*_bytes(ring, table, cursor, out), frames, row_bytes)

    def step_window(
        self,
        prediction: np.ndarray,
        prediction_dtype: str,
        halves: int,
        frames: int,
        size: int,
        ring: np.ndarray,
        pending: np.ndarray,
        most: int,
        history: np.ndarray | None,
        places: np.ndarray,
        weights: np.ndarray,
        cursor: np.ndarray,
        status: np.ndarray,
        stream: int = 0,
    ) -> None:
        """See `Kernels.step_window`."""
        past = _bytes(history)[0] if isinstance(history, np.ndarray) else None
        self._native.step_window(
            *_bytes(prediction),
            prediction_dtype,
            halves,
            frames,
            size,
            *_bytes(ring, pending),
            most,
            past,
            *_bytes(places, weights, cursor, status),
        )

    def advance(self, cursor: np.ndarray, stream: int = 0) -> None:
        """See `Kernels.advance`."""
        cursor.reshape(-1)[0] += 1

    def noise(self, out: np.ndarray, seed: int, frame: int, size: int, stream: int = 0) -> None:
        """See `Kernels.noise`."""
        self._native.noise(*_bytes(out), seed, frame, size)

    def unscale(self, latents: np.ndarray, scaling: float, out: np.ndarray, size: int, stream: int = 0) -> None:
        """See `Kernels.unscale`."""
        self._native.unscale(*_bytes(latents), scaling, *_bytes(out), size)

    def median(
        self,
        previous: np.ndarray,
        current: np.ndarray,
        next: np.ndarray,
        out: np.ndarray,
        height: int,
        width: int,
        stream: int = 0,
    ) -> None:
        """See `Kernels.median`."""
        self._native.median(*_bytes(previous, current, next, out), height, width)

    def to_rgb8(
        self,
        decoded: np.ndarray,
        dtype: str,
        height: int,
        width: int,
        out: np.ndarray,
        stream: int = 0,
        status: np.ndarray | None = None,
    ) -> None:
        """See `Kernels.to_rgb8`."""
        noted = None if status is None else _bytes(status)[0]
        self._native.to_rgb8(*_bytes(decoded), dtype, height, width, *_bytes(out), noted)

    def rgb_to_nv12(self, rgb: np.ndarray, out: np.ndarray, height: int, width: int, stream: int = 0) -> None:
        """See `Kernels.rgb_to_nv12`."""
        self._native.rgb_to_nv12(*_bytes(rgb, out), height, width)

    def draw_keypoints(
        self,
        points: np.ndarray,
        count: int,
        height: int,
        width: int,
        out: np.ndarray,
        out_dtype: str,
        stream: int = 0,
        points_dtype: str = "float32",
    ) -> None:
        """See `Kernels.draw_keypoints`."""
        points, out = _bytes(points, out)
        self._native.draw_keypoints(points, count, height, width, out, out_dtype, points_dtype == "float64")


def _bytes(*arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays' memory, uint8 [bytes] each. Raises ValueError where an array is not C-contiguous."""
    if not all(array.flags.c_contiguous for array in arrays):
        raise ValueError("the kernels take C-contiguous arrays")
    return [array.reshape(-1).view(np.uint8) for array in arrays]
