"""Plans for several versions of TensorRT bring native code that runs in this process: only where the user says so."""

import os

TRUST_VARIABLE = "VEXPRESS_TRUST_ENGINES"


def brings_host_code(options: tuple[str, ...]) -> bool:
    """Whether a plan of these build options brings native code."""
    return "version_compatible" in options


def distrust(options: tuple[str, ...]) -> str:
    """Why a stored plan of these build options is not to run, or ""."""
    if not brings_host_code(options) or os.environ.get(TRUST_VARIABLE) == "1":
        return ""
    return f"this engine brings native code: set {TRUST_VARIABLE}=1 to let it run, if you trust whoever built it"
