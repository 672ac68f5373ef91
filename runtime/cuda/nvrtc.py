"""The CUDA kernels compiled at run time for the GPU at hand, and kept in the user's cache."""

import contextlib
import hashlib
from pathlib import Path
from types import ModuleType

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path, user_cache

NATIVE = Path(__file__).resolve().parent.parent / "native"
SOURCE = NATIVE / "cuda" / "kernels.cu"
DTYPES = ("float32", "float16", "bfloat16")
KERNELS = (
    *(f"{name}_{dtype}" for name in ("gather_latents", "step_window", "to_rgb8") for dtype in DTYPES),
    *("gather_rows", "advance", "noise", "unscale", "median", "rgb_to_nv12", "draw_keypoints"),
)
OPTIONS = ("--std=c++17", "--fmad=false")


def cubin(architecture: int) -> bytes:
    """The kernels' machine code for a compute capability, 90 for 9.0: from the cache, or compiled in about a second.

    Raises UserError where NVRTC is missing, does not know the architecture or refuses the source.
    """
    key = f"kernels-sm{architecture}-nvrtc{version(bindings())}-{source_hash()[:16]}"
    kept = user_cache() / "kernels" / f"{key}.cubin"
    try:
        return kept.read_bytes()
    except OSError:
        code = compiled(architecture)
    with contextlib.suppress(UserError), atomic_path(kept) as path:  # only the next start pays where this fails
        path.write_bytes(code)
    return code


def compiled(architecture: int) -> bytes:
    """As `cubin`, without the cache."""
    nvrtc = bindings()
    known = _checked(nvrtc, nvrtc.nvrtcGetNumSupportedArchs())[1]
    known = list(_checked(nvrtc, nvrtc.nvrtcGetSupportedArchs())[1])[:known]
    if architecture not in known:
        raise UserError(
            f"NVRTC {version(nvrtc)} compiles for sm_{known[0]} to sm_{known[-1]}, and this GPU is sm_{architecture}: "
            "install another version of nvidia-cuda-nvrtc"
        )
    options = [*OPTIONS, f"--gpu-architecture=sm_{architecture}", f"--include-path={NATIVE}"]
    _, program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), SOURCE.name.encode(), 0, [], []))
    try:
        outcome = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if outcome[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise UserError(f"NVRTC {version(nvrtc)} refuses the kernels for sm_{architecture}: {_log(nvrtc, program)}")
        code = bytearray(_checked(nvrtc, nvrtc.nvrtcGetCUBINSize(program))[1])
        _checked(nvrtc, nvrtc.nvrtcGetCUBIN(program, code))
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def source_hash() -> str:
    """SHA-256 of the kernels, their headers and the compiler's options, in hexadecimal."""
    digest = hashlib.sha256(" ".join(OPTIONS).encode())
    for path in [SOURCE, *sorted(NATIVE.glob("*.h"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def bindings() -> ModuleType:
    """`cuda.bindings.nvrtc`. Raises UserError where cuda-bindings is missing."""
    try:
        from cuda.bindings import nvrtc as module
    except ImportError as error:
        raise UserError(f"the CUDA loop needs cuda-bindings ({error}): pip install 'vexpress-trt[cuda]'") from None
    return module


def version(nvrtc: ModuleType) -> str:
    """NVRTC's version, such as 13.0. Raises UserError where the bindings do not find the library."""
    try:
        _, major, minor = _checked(nvrtc, nvrtc.nvrtcVersion())
    except RuntimeError as error:
        raise UserError(f"the CUDA loop needs NVRTC ({error}): pip install 'vexpress-trt[cuda]'") from None
    return f"{major}.{minor}"


def _checked(nvrtc: ModuleType, outcome: tuple) -> tuple:
    if outcome[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise UserError(f"NVRTC reports {nvrtc.nvrtcGetErrorString(outcome[0])[1].decode()}")
    return outcome


def _log(nvrtc: ModuleType, program: object) -> str:
    text = bytearray(_checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))[1])
    _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, text))
    return bytes(text).rstrip(b"\0\n").decode(errors="replace")
