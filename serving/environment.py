"""Triton's own Python environment: the server binary of the nvidia-pytriton wheel, and NumPy below 2.

The runtime is not installed there: with NumPy 2 this Triton answers with empty tensors, silently, and the workers run
in the interpreter that runs `vexpress` anyway. So it needs two wheels, about 60 MB to download and 250 MB on disk.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import check_place, remove, user_cache

PACKAGES = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")
PYTHONS = ((3, 11), (3, 12))  # NumPy 1.26 has no wheel for later ones
_MARKER = "vexpress.json"


@dataclass(frozen=True)
class Environment:
    """An environment that is complete."""

    root: Path

    @property
    def triton(self) -> Path:
        """The folder with `bin/tritonserver` and `backends/`."""
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        return self.root / "lib" / version / "site-packages" / "pytriton" / "tritonserver"

    def variables(self) -> dict[str, str]:
        """The environment variables of the server: its Python first, and the library of that interpreter."""
        library = sysconfig.get_config_var("LIBDIR") or ""
        paths = [library, str(self.triton / "lib"), os.environ.get("LD_LIBRARY_PATH", "")]
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        return {
            **kept,
            "PATH": f"{self.root / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
            "VIRTUAL_ENV": str(self.root),
            "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths)),
        }


def default_folder() -> Path:
    """In the user's cache, one for each version of Python."""
    return user_cache() / "serve" / f"python{sys.version_info[0]}.{sys.version_info[1]}"


def prepare(folder: Path, say: Callable[[str], None]) -> Environment:
    """The environment at `folder`, made when it is missing or of another version; `say` gets lines for the user.

    Raises UserError where this Python or platform has no such wheel, or pip fails.
    """
    if sys.platform != "linux" or sys.version_info[:2] not in PYTHONS:
        known = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise UserError(f"vexpress serve needs Linux and Python {known}: this is Python {sys.version.split()[0]}.")
    folder = folder.absolute()
    if _complete(folder):  # perhaps another user's, who made it for all
        return Environment(folder)
    lock = Path(f"{folder}.lock")
    check_place(lock)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if not _complete(folder):
            if folder.exists() and not (folder / "pyvenv.cfg").is_file() and any(folder.iterdir()):
                raise UserError(f"--environment {folder}: the folder holds something else; name another.")
            say(f"setting up Triton once, in {folder}: {', '.join(PACKAGES)}; about 60 MB are downloaded")
            remove(folder)
            _make(folder)
            (folder / _MARKER).write_text(_wanted(), encoding="utf-8")
    return Environment(folder)


def _wanted() -> str:
    return json.dumps({"packages": PACKAGES, "python": sys.version, "base": sys.base_prefix})


def _complete(folder: Path) -> bool:
    marker = folder / _MARKER
    return marker.is_file() and marker.read_text(encoding="utf-8") == _wanted()


def _make(folder: Path) -> None:
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "--no-deps", "--only-binary", ":all:", *PACKAGES],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            remove(folder)
            reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"Triton's environment could not be set up in {folder}: {reason[0]}")
    triton = Environment(folder).triton
    stub = (
        triton / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}" / "triton_python_backend_stub"
    )
    shutil.copy2(stub, triton / "backends" / "python")
