"""What machine a figure was measured on."""

import os
import platform
from importlib import metadata

from vexpress_trt.engines.cpu import cpu, usable_cores

_PACKAGES = (
    "vexpress-trt numpy onnx onnxruntime openvino torch diffusers transformers scipy av opencv-python-headless".split()
)


def describe_machine() -> dict[str, object]:
    """CPU model and features, cores this process may use, memory, system and package versions."""
    processor = cpu()
    return {
        "cpu": processor.model,
        "features": list(processor.flags),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def machine_line(machine: dict[str, object]) -> str:
    """The machine in a few words: `2 cores of AMD EPYC`."""
    return f"{machine['cores']} cores of {machine['cpu']}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
