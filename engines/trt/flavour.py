"""The two TensorRTs as one: which Python module serves a backend, and what it can be asked for."""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.engines.selection import package_version

TENSORRT, RTX = "tensorrt", "tensorrt-rtx"
# What TensorRT-RTX can build for without a GPU; it does not know the data-centre GPUs of the 9.0 family.
RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")

_MODULES = {TENSORRT: (("tensorrt",), ()), RTX: (("tensorrt_rtx", "tensorrt_rtx_bindings"), ("tensorrt_rtx_libs",))}
_INSTALL = {
    TENSORRT: "pip install tensorrt-cu13",
    RTX: "pip install tensorrt_rtx_cu13_bindings tensorrt_rtx_cu13_libs",
}
SMALLEST = (10, 12)  # of full TensorRT: what this was written for; older ones were not looked at
_WITH_ATTENTION = (10, 14)  # of full TensorRT: the first whose parser and networks have attention as one thing


@dataclass(frozen=True)
class TensorRt:
    """One of the two, imported: `module` is what the vendor's documentation calls `trt`."""

    backend: str
    module: ModuleType
    version: str

    @property
    def is_rtx(self) -> bool:
        return self.backend == RTX

    @property
    def has_attention(self) -> bool:
        """Whether its parser knows the operator `Attention`."""
        return self.is_rtx or _release(self.version) >= _WITH_ATTENTION

    @property
    def cuda_major(self) -> int:
        """The major version of CUDA that its libraries are built for; the driver's where the package does not tell."""
        packages = (f"{name}_cu{major}_libs" for name in ("tensorrt_rtx", "tensorrt") for major in (13, 12))
        found = next((name for name in packages if package_version(name) and ("rtx" in name) == self.is_rtx), None)
        if found is not None:
            return int(found.split("_cu")[1][:2])
        return int((gpu_status().cuda or "13").split(".")[0])


def load_tensorrt(backend: str) -> TensorRt:
    """Import what serves `backend`. Raises UserError with the command that installs it, or why it cannot be used."""
    names, libraries = _MODULES[backend]
    for library in libraries:  # finds the shared libraries, which the bindings then load
        _attempt(library)
    problems: list[str] = []
    module = next((found for name in names if (found := _attempt(name, problems)) is not None), None)
    if module is None:
        reason = problems[-1] if problems else "it is not installed"
        raise UserError(f"{backend} cannot be imported ({reason}): install it with `{_INSTALL[backend]}`")
    version = str(module.__version__)
    if backend == TENSORRT and _release(version) < SMALLEST:
        raise UserError(f"tensorrt {version} is too old: install 10.12 or newer with `{_INSTALL[backend]}`")
    return TensorRt(backend, module, version)


def compute_capability(trt: ModuleType, target: str) -> Any:
    """TensorRT-RTX's name of a target such as "sm89". Raises UserError for one that it cannot build for."""
    found = getattr(trt.ComputeCapability, target.upper(), None) if target in RTX_TARGETS else None
    if found is None:
        raise UserError(
            f"--target {target}: TensorRT-RTX builds for {', '.join(RTX_TARGETS)}; for others (H100, "
            "H200: sm90) use --backend tensorrt on the machine that has one"
        )
    return found


def _release(version: str) -> tuple[int, ...]:
    """Major and minor number."""
    return tuple(int(part) for part in version.split(".")[:2])


def _attempt(name: str, problems: list[str] | None = None) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as problem:  # OSError: a shared library is missing
        if problems is not None:
            problems.append(str(problem).splitlines()[0])
        return None
