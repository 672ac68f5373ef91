"""The kernels, launched on a GPU's streams; see runtime/native/cuda/kernels.cu.

The loop and the decoder behind it use all but `noise`, `rgb_to_nv12` and the smaller types, which serve C++ hosts.
"""

import ctypes
import functools

from vexpress_trt.engines.closing import Closing
from vexpress_trt.engines.driver import driver
from vexpress_trt.runtime.cuda import nvrtc
from vexpress_trt.runtime.cuda.nvrtc import DTYPES

_THREADS, _WARP = 256, 32
_MOST_COLUMNS, _MOST_ROWS = 4096, 65_535  # blocks of a grid; what is beyond, their threads do in turn
_POINTER, _INDEX, _WORD, _SEED = ctypes.c_void_p, ctypes.c_longlong, ctypes.c_uint, ctypes.c_ulonglong
_FLOAT = ctypes.c_float


class Kernels(Closing):
    """The kernels on one GPU. Every method only enqueues: nothing waits, and nothing is allocated.

    Pointers and the stream are addresses and handles as int; dtypes are named as in DTYPES, latents are float32.
    `cursor` points to the number of the call, an int32 on the device, by which tables of the whole schedule are looked
    up: one captured CUDA graph serves for all calls. HostKernels does the same over NumPy arrays.

    Any thread may launch; the GPU's primary context is made current for the launch and the one before restored.
    """

    def __init__(self, device: int) -> None:
        """`device`: the GPU's number among the visible ones. Compiles the kernels where the cache has none yet.

        Raises UserError where cuda-bindings, a driver, the GPU or NVRTC is missing.
        """
        self._driver = driver(device)
        self._module = None
        major, minor = self._driver.capability
        code = nvrtc.cubin(10 * major + minor)
        try:
            with self._driver.current():
                self._module = self._driver.call("cuModuleLoadData", code)
                self._functions = {
                    name: self._driver.call("cuModuleGetFunction", self._module, f"vx_{name}".encode())
                    for name in nvrtc.KERNELS
                }
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unload the kernels; what was enqueued must have run."""
        module, self._module = self._module, None
        if module is not None:
            with self._driver.current():
                self._driver.call("cuModuleUnload", module)

    def gather_latents(
        self,
        ring: int,
        table: int,
        cursor: int,
        out: int,
        frames: int,
        size: int,
        slots: int,
        out_dtype: str,
        stream: int,
    ) -> None:
        """out [frames, size] in `out_dtype` = ring [slots, size] by rows table[cursor], table int32 [calls, frames].

        Rounded to the nearest value, ties to even. A slot that the ring does not have gives NaN.
        """
        self._launch(
            f"gather_latents_{out_dtype}",
            (frames, size),
            ((ring, table, cursor, out, frames, size, slots), (*[_POINTER] * 4, *[_INDEX] * 3)),
            stream,
        )

    def gather_rows(
        self, ring: int, table: int, cursor: int, out: int, frames: int, row_bytes: int, stream: int
    ) -> None:
        """out [frames, row_bytes] = rows table[cursor] of ring [slots, row_bytes], bytes as they are."""
        self._launch(
            "gather_rows",
            (frames, -(-row_bytes // 4)),
            ((ring, table, cursor, out, frames, row_bytes), (*[_POINTER] * 4, *[_INDEX] * 2)),
            stream,
        )

    def step_window(
        self,
        prediction: int,
        prediction_dtype: str,
        halves: int,
        frames: int,
        size: int,
        ring: int,
        pending: int,
        most: int,
        history: int | None,
        places: int,
        weights: int,
        cursor: int,
        status: int,
        stream: int,
    ) -> None:
        """Guidance, overlap mean and solver step of a predicted window, in float32 and in place.

        prediction [halves, frames, size] in `prediction_dtype`, the unconditional half first if there are two; ring and
        history (None or 0 where the solver needs none) [slots, size]; pending [slots, most, size]; places int32
        [calls, frames, 4]: slot, windows that contain the frame, this one's place among them, whether it is the last
        missing one; weights float32 [calls, 6]: guidance, sample, prediction, history, signal, noise. `status`,
        an int32 that starts at 0, becomes the number of the first call with a value that is not finite, plus 1.
        """
        pointers = (ring, pending, most, history or 0, places, weights, cursor, status)
        self._launch(
            f"step_window_{prediction_dtype}",
            (frames, size),
            (
                (prediction, halves, frames, size, *pointers),
                (_POINTER, *[_INDEX] * 3, _POINTER, _POINTER, _INDEX, *[_POINTER] * 5),
            ),
            stream,
        )

    def advance(self, cursor: int, stream: int) -> None:
        """cursor += 1, for the next call."""
        self._launch("advance", (1, 1), ((cursor,), (_POINTER,)), stream, threads=1)

    def noise(self, out: int, seed: int, frame: int, size: int, stream: int) -> None:
        """The noise a frame starts from, float32 [size]: as `frame_noise` of runtime/noise.py to within one unit in the
        last place, since the GPU's logarithm, sine and cosine are its own."""
        self._launch("noise", (1, -(-size // 4)), ((out, seed, frame, size), (_POINTER, _SEED, _WORD, _INDEX)), stream)

    def unscale(self, latents: int, scaling: float, out: int, size: int, stream: int) -> None:
        """out float32 [size] = latents / scaling, as the decoder takes them; divided in float32."""
        self._launch(
            "unscale", (1, size), ((latents, scaling, out, size), (_POINTER, _FLOAT, _POINTER, _INDEX)), stream
        )

    def median(self, previous: int, current: int, next: int, out: int, height: int, width: int, stream: int) -> None:
        """The 3x3x3 median of frames uint8 [height, width, 3], bit for bit that of runtime/median.py."""
        arguments = (previous, current, next, out, height, width)
        self._launch("median", (height, 3 * width), (arguments, (*[_POINTER] * 4, _INDEX, _INDEX)), stream)

    def to_rgb8(
        self, decoded: int, dtype: str, height: int, width: int, out: int, stream: int, status: int | None = None
    ) -> None:
        """uint8 [height, width, 3] of the decoder's [3, height, width] in -1 to 1, as the loop on the CPU makes it:
        x / 2 + 1/2 in float32, limited to 0 to 1, times 255, truncated. `status`: an int32 that becomes 1 where it is 0
        and a value is not finite, or None."""
        arguments = (decoded, out, height, width, status or 0)
        self._launch(
            f"to_rgb8_{dtype}", (height, width), (arguments, (_POINTER, _POINTER, _INDEX, _INDEX, _POINTER)), stream
        )

    def rgb_to_nv12(self, rgb: int, out: int, height: int, width: int, stream: int) -> None:
        """NV12 of a frame uint8 [height, width, 3], BT.601 in limited range, rounded to the nearest value, halves up.

        out: luma [height, width], then blue and red chroma [ceil(height / 2), ceil(width / 2), 2] of the mean colour.
        """
        self._launch(
            "rgb_to_nv12",
            (-(-height // 2), -(-width // 2)),
            ((rgb, out, height, width), (_POINTER, _POINTER, _INDEX, _INDEX)),
            stream,
        )

    def draw_keypoints(
        self,
        points: int,
        count: int,
        height: int,
        width: int,
        out: int,
        out_dtype: str,
        stream: int,
        points_dtype: str = "float32",
    ) -> None:
        """The guide images of points [count, 3, 2], float32 or float64 in pixels: `draw_keypoints` of
        runtime/keypoints.py, bit for bit.

        out: uint8 [count, height, width, 3], or in one of DTYPES what the guider takes, [count, 3, height, width] in 0
        to 1.
        """
        wide, kind = ("float32", "float64").index(points_dtype), (*DTYPES, "uint8").index(out_dtype)
        self._launch(
            "draw_keypoints",
            (count, height),
            ((points, wide, out, kind, count, height, width), (_POINTER, _WORD, _POINTER, _WORD, *[_INDEX] * 3)),
            stream,
            threads=_WARP,
        )

    def _launch(
        self,
        name: str,
        size: tuple[int, int],
        arguments: tuple[tuple[float, ...], tuple[type, ...]],
        stream: int,
        threads: int = _THREADS,
    ) -> None:
        """Enqueue a kernel over `size` (rows, columns); `arguments` are values and their C types."""
        rows, columns = size
        if rows < 1 or columns < 1:
            return
        if name not in self._functions:
            raise ValueError(f"there is no kernel {name}: dtypes are {', '.join(DTYPES)}")
        grid = min(-(-columns // threads), _MOST_COLUMNS), min(rows, _MOST_ROWS), 1
        with self._driver.current():
            self._driver.call("cuLaunchKernel", self._functions[name], *grid, threads, 1, 1, 0, stream, arguments, 0)


@functools.cache
def kernels(gpu: int) -> Kernels:
    """Those of the GPU of this number, loaded once: captured work refers to them, however long it lives.

    Raises UserError as `Kernels` does.
    """
    return Kernels(gpu)
