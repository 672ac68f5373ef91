"""`--dump_tensors`: the numbers of one generation, for comparison with another implementation."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path


class TensorDump:
    """Collects what passes through it; without a path it only passes things on.

    The .npz holds float32 `initial_latents` and `final_latents` [1, 4, L, h, w], `frames` [L, H, W, 3] in [0, 1] before
    the median filter, `frames_uint8` [L, H, W, 3] after it, `video_length` and `fps`.
    """

    def __init__(self, path: Path | None, length: int, fps: float) -> None:
        if path is not None and Path(path).suffix != ".npz":
            raise UserError(f"--dump_tensors {path}: the file must end in .npz.")
        self._path = path
        self._length = length
        self._fps = fps
        self._initial: dict[int, np.ndarray] = {}
        self._final: list[np.ndarray] = []
        self._images: list[np.ndarray] = []
        self._frames: list[np.ndarray] = []

    def noise(self, of_frame: Callable[[int], np.ndarray]) -> Callable[[int], np.ndarray]:
        """Keep each frame's noise [4, h, w] as it is drawn."""
        if self._path is None:
            return of_frame

        def remembered(frame: int) -> np.ndarray:
            self._initial[frame] = np.array(of_frame(frame))
            return self._initial[frame]

        return remembered

    def latent(self, latent: np.ndarray) -> np.ndarray:
        """Keep a final latent [4, h, w]."""
        if self._path is not None:
            self._final.append(np.array(latent))
        return latent

    def images(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Keep decoded images [H, W, 3] as they pass."""
        for image in images:
            if self._path is not None:
                self._images.append(image)
            yield image

    def frame(self, frame: np.ndarray) -> None:
        """Keep a finished frame, uint8 [H, W, 3]."""
        if self._path is not None:
            self._frames.append(frame)

    def write(self) -> None:
        """Write the file. Raises UserError where it cannot be written."""
        if self._path is None:
            return
        initial = [self._initial[frame] for frame in range(self._length)]
        with atomic_path(Path(self._path)) as temporary:
            np.savez_compressed(
                temporary,
                initial_latents=np.stack(initial, axis=1)[None],
                final_latents=np.stack(self._final, axis=1)[None],
                frames=np.stack(self._images),
                frames_uint8=np.stack(self._frames),
                video_length=np.int64(self._length),
                fps=np.float64(self._fps),
            )
