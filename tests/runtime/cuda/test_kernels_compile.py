"""The kernels compile for every targeted GPU, without one: by NVRTC as the loop does it, by nvcc for C++ hosts."""

import ctypes
import re
from pathlib import Path

import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.cuda import nvrtc
from vexpress_trt.runtime.cuda.kernels import Kernels


@pytest.fixture
def has_nvrtc() -> None:
    """Skips where NVRTC or its bindings are not installed."""
    module = pytest.importorskip("cuda.bindings.nvrtc")
    try:
        module.nvrtcVersion()
    except RuntimeError as reason:
        pytest.skip(f"cuda-bindings finds no NVRTC: {reason}")


@pytest.mark.parametrize("architecture", [80, 86, 89, 90, 120])
def test_nvrtc_compiles_the_kernels(has_nvrtc: None, architecture: int) -> None:
    code = nvrtc.compiled(architecture)
    assert code.startswith(b"\x7fELF")
    for name in nvrtc.KERNELS:
        assert f".text.vx_{name}\0".encode() in code


def test_no_kernel_takes_a_large_stack(has_nvrtc: None) -> None:
    """CUDA sets a stack aside for every thread that the GPU can hold, 270,000 on an H100, from the first launch on."""
    module, options = nvrtc.bindings(), ["--gpu-architecture=sm_90", "--ptxas-options=-v"]
    options += [*nvrtc.OPTIONS, f"--include-path={nvrtc.NATIVE}"]
    _, program = module.nvrtcCreateProgram(nvrtc.SOURCE.read_bytes(), b"kernels.cu", 0, [], [])
    module.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
    said = bytearray(module.nvrtcGetProgramLogSize(program)[1])
    module.nvrtcGetProgramLog(program, said)
    module.nvrtcDestroyProgram(program)
    kernels = re.findall(rb"Function properties for vx_(\w+)\n\D+(\d+) bytes stack frame", said)
    assert {name.decode() for name, _ in kernels} == set(nvrtc.KERNELS)
    assert {name: size for name, size in kernels if int(size) > 256} == {}


def test_a_gpu_that_nvrtc_does_not_know_is_a_sentence(has_nvrtc: None) -> None:
    with pytest.raises(UserError, match=r"this GPU is sm_20: install another version of nvidia-cuda-nvrtc"):
        nvrtc.compiled(20)


def test_what_nvrtc_refuses_is_quoted(has_nvrtc: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.cu"
    broken.write_text("__global__ void broken() { nothing(); }")
    monkeypatch.setattr(nvrtc, "SOURCE", broken)
    with pytest.raises(UserError, match=r'refuses the kernels for sm_90: broken.cu\(1\): error: identifier "nothing"'):
        nvrtc.compiled(90)


def test_machine_code_is_compiled_once(has_nvrtc: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, compiled = nvrtc.cubin(86), []
    monkeypatch.setattr(nvrtc, "compiled", lambda architecture: compiled.append(architecture) or b"new")
    assert nvrtc.cubin(86) == first
    assert not compiled
    assert nvrtc.cubin(89) == b"new"
    monkeypatch.setattr(nvrtc, "source_hash", lambda: "another")
    assert nvrtc.cubin(86) == b"new"
    assert compiled == [89, 86]


def test_a_cache_that_cannot_be_written_is_done_without(
    has_nvrtc: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert nvrtc.cubin(86).startswith(b"\x7fELF")


def test_without_the_bindings_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    with pytest.raises(UserError, match=r"needs cuda-bindings .*pip install 'vexpress-trt\[cuda\]'"):
        Kernels(0)


def test_without_a_driver_there_is_a_sentence() -> None:
    pytest.importorskip("cuda.bindings.driver")
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(UserError, match="no NVIDIA driver here"):
            Kernels(0)
    else:
        pytest.skip("there is a driver")


def test_nvcc_builds_the_c_library_for_every_targeted_gpu(kernel_library: Path) -> None:
    library = ctypes.CDLL(str(kernel_library))
    library.vexpress_cuda_error_string.restype = ctypes.c_char_p
    assert library.vexpress_cuda_error_string(0) == b"no error"
    assert library.vexpress_cuda_error_string(1) == b"invalid argument"


def test_the_c_library_declares_what_the_kernels_do(kernel_library: Path) -> None:
    library = ctypes.CDLL(str(kernel_library))
    names = {re.sub("_b?float(16|32)$", "", name) for name in nvrtc.KERNELS}
    assert all(hasattr(library, f"vexpress_{name}") for name in names)
