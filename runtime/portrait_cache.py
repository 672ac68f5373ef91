"""Keys and values of portraits on disk, so that a portrait's next clip needs neither VAE encoder nor reference net."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.dims import evaluate
from vexpress_trt.engines.dtypes import numpy_dtype
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path, user_cache
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.selection import EngineChoice, package_version

log = logging.getLogger("vexpress")
OFF = "off"
MAX_BYTES = 2 << 30  # a 512x512 portrait of the full-size model takes 92 MB in FP32, half of that in FP16
_GRAPHS = ("vae_encoder", "reference")


class PortraitCache:
    """A folder of .npz files, one per portrait; the ones used longest ago go when it outgrows `max_bytes`.

    Processes may share it: files appear whole and are replaced whole, and one that is damaged or gone counts as absent.
    A folder that cannot be written is left alone, with a warning.
    """

    def __init__(self, folder: Path | None, max_bytes: int = MAX_BYTES) -> None:
        """`folder` None remembers nothing."""
        self._folder = folder
        self._max_bytes = max_bytes

    @classmethod
    def of(cls, setting: str | None) -> "PortraitCache":
        """From `--portrait_cache`: a folder, "off", or None for the user's cache folder."""
        if setting is None:
            return cls(user_cache() / "portraits")
        return cls(None if setting == OFF else Path(setting))

    def get_or_make(
        self, image: np.ndarray, bundle: Bundle, choice: EngineChoice, make: Callable[[], dict[str, np.ndarray]]
    ) -> tuple[dict[str, np.ndarray], bool]:
        """(the outputs of the bundle's reference graph for a portrait, whether they were remembered).

        `image`: float32 [1, 3, H, W] as the VAE encoder takes it; `make` computes them.
        """
        if self._folder is None:
            return make(), False
        path = self._folder / f"{_key(image, bundle, choice)}.npz"
        spec = bundle.graph("reference", choice.precision)
        factor = bundle.manifest.model.vae_scale_factor
        sizes = {"h": image.shape[2] // factor, "w": image.shape[3] // factor}
        found = _read(path, spec, sizes)
        if found is not None:
            return found, True
        made = make()
        try:
            _write(path, made)
            self._make_room(keep=path)
        except (UserError, OSError) as problem:
            log.warning(f"the portrait is not remembered: {problem} (--portrait_cache DIR, or off)")
        return made, False

    def _make_room(self, keep: Path) -> None:
        files = []
        for path in self._folder.glob("*.npz"):
            with contextlib.suppress(OSError):  # another process may have taken it away
                stat = path.stat()
                files.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._max_bytes:
                return
            if path != keep:
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= size


def _key(image: np.ndarray, bundle: Bundle, choice: EngineChoice) -> str:
    """Everything that decides the values: the picture, the weights, and what computes them."""
    digest = hashlib.sha256(repr((image.shape, choice.backend, choice.precision, choice.dtype)).encode())
    digest.update(str(package_version(choice.backend.partition("-")[0])).encode())
    for graph in _GRAPHS:
        for file in bundle.graph(graph, choice.precision).files:
            digest.update(bundle.manifest.files[file].sha256.encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _read(path: Path, spec: GraphSpec, sizes: dict[str, int]) -> dict[str, np.ndarray] | None:
    """The arrays of a file, or None where it is missing, damaged or holds something else."""
    found = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for tensor in spec.outputs:
                array = file[tensor.name].view(numpy_dtype(tensor.dtype))
                if array.shape != tuple(evaluate(dimension, sizes) for dimension in tensor.shape):
                    return None
                found[tensor.name] = array
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as problem:  # noqa: BLE001 - what a damaged archive raises has many types
        log.info(f"{path.name} among the remembered portraits is damaged ({problem}): it is made anew")
        return None
    with contextlib.suppress(OSError):  # a folder that may only be read
        os.utime(path)
    return found


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An archive without compression; bfloat16, which .npz does not know, as its bits."""
    plain = {name: array.view(np.uint16) if array.dtype.name == "bfloat16" else array for name, array in arrays.items()}
    with atomic_path(path) as temporary:
        np.savez(temporary, **plain)
