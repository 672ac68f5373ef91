"""What full TensorRT measured while building, kept from build to build: later ones take minutes less."""

import re
from pathlib import Path
from typing import Any

from filelock import FileLock

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path, user_cache
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.engines.trt.flavour import TensorRt

MAX_BYTES = 1 << 30


class TimingCache:
    """A file of timings of one version on one kind of GPU. Several processes may build at once: nothing is lost."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, tensorrt: TensorRt, gpu_id: int, folder: Path | None = None) -> "TimingCache":
        """The one for this version and GPU, in `folder` (None: in the user's cache folder)."""
        gpu = re.sub(r"[^A-Za-z0-9]+", "-", gpu_status().devices[gpu_id].name).strip("-")
        folder = user_cache() / "timing" if folder is None else folder
        return cls(folder / f"{tensorrt.backend}-{tensorrt.version}-{gpu}.timing")

    def attach(self, config: Any) -> None:
        """Give the builder what is known; a file that it does not take counts as empty."""
        known = self._read()
        timings = config.create_timing_cache(known)
        if not config.set_timing_cache(timings, False):
            timings = config.create_timing_cache(b"")
            config.set_timing_cache(timings, False)

    def keep(self, config: Any) -> None:
        """Add what the builder measured to the file. Raises UserError where it cannot be written."""
        timings = config.get_timing_cache()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path.with_suffix(".lock"))
            lock.acquire()
        except OSError as problem:
            raise UserError(
                f"cannot write {self.path} ({problem.strerror}): name another folder with --timing_cache"
            ) from None
        with lock:
            since = self._read()
            if since:
                timings.combine(config.create_timing_cache(since), True)
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(bytes(memoryview(timings.serialize())))

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes() if self.path.stat().st_size <= MAX_BYTES else b""
        except OSError:
            return b""
