"""The Triton kernels compile for every targeted GPU, without one, to code that keeps to its registers."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the export extra")
pytest.importorskip("triton", reason="needs Triton, which there is for Linux")

import torch  # noqa: E402
import triton  # noqa: E402
from torch import Tensor  # noqa: E402

from vexpress_trt.export.nets.fused import kernels, programs  # noqa: E402

NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# Pixels and channels at the levels of a denoiser of 64x64 latents; the deepest is as the one before.
SIZES = [(4096, 320), (1024, 640), (256, 1280)]
# The dtype in use on every kind of GPU; the others on the oldest and, with little memory, the newest. What FP16 is on
# 90 is looked at for all sizes.
TARGETS = [(architecture, torch.float16) for architecture in (80, 86, 89, 120)]
TARGETS += [(80, torch.bfloat16), (120, torch.float32)]
SHARED_MEMORY = 99 * 1024  # that a program can have on sm_86, 89 and 120


@dataclass(frozen=True)
class Launch:
    """A kernel as Triton specialises it for a call."""

    kernel: triton.JITFunction
    signature: dict[str, str]
    constants: dict[tuple[int], Any]
    hints: dict[tuple[int], Any]
    options: dict[str, Any]

    @classmethod
    def of(cls, kernel: triton.JITFunction, args: tuple, warps: int, constants: dict[str, int]) -> "Launch":
        """On tensors whose addresses are multiples of 16 bytes."""
        signature, hints = dict.fromkeys(kernel.arg_names, "constexpr"), {}
        fixed = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        for place, value in enumerate(args):
            specialised = isinstance(value, int) and not kernel.params[place].do_not_specialize
            if value is None or specialised and value == 1:
                fixed[place,] = value
                continue
            tensor = isinstance(value, Tensor)
            kind = f"*{NAMES[value.dtype]}" if tensor else {int: "i32", float: "fp32"}[type(value)]
            signature[kernel.arg_names[place]] = kind
            if tensor or specialised and value % 16 == 0:
                hints[place,] = [["tt.divisibility", 16]]
        return cls(kernel, signature, fixed, hints, {"num_warps": warps, "enable_fp_fusion": True})

    def __str__(self) -> str:
        return f"{self.kernel.__name__} {self.signature} {self.constants} {self.hints} {self.options}"

    def compiled(self, architecture: int) -> Any:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        source = ASTSource(self.kernel, self.signature, self.constants, self.hints)
        return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=self.options)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Launch]]:
    """What the denoiser's operations launch on rows of the given sizes, each kind once."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # nothing that was compiled before
    found: dict[str, Launch] = {}

    def record(kernel: triton.JITFunction, number: int, *args: Any, warps: int, **constants: int) -> None:
        launch = Launch.of(kernel, args, warps, constants)
        found[str(launch)] = launch

    def recorded(sizes: list[tuple[int, int]], dtype: torch.dtype) -> list[Launch]:
        found.clear()
        for pixels, channels in sizes:
            _call_everything(pixels, channels, dtype)
        return list(found.values())

    monkeypatch.setattr(kernels, "_launch", record)
    return recorded


def _call_everything(pixels: int, channels: int, dtype: torch.dtype) -> None:
    """Every operation as the denoiser uses it on 48 images: two windows of 24 frames, eight heads."""

    def tensor(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows, row, norm = tensor(48, pixels, channels), tensor(channels), (tensor(channels), tensor(channels), 1e-5)
    positions = tensor(24, channels)
    kernels.add_rows(rows, rows, row)
    kernels.group_norm(rows, 32, *norm, shift=tensor(48, channels), silu=True)
    kernels.group_norm(rows, 32, *norm, silu=False)
    kernels.add_group_norm(rows, rows, 32, *norm, shift=row, silu=True)
    for added in (rows, None):
        both = (tensor(2 * channels), tensor(2 * channels), 1e-5)
        kernels.add_group_norm(rows, added, 32, *both, beside=rows, silu=True)
    kernels.layer_norm(rows, *norm, positions=positions)
    kernels.add_layer_norm(rows, rows, *norm, scale=tensor(1), shift=row)
    kernels.add_layer_norm(rows, rows, *norm, positions=positions)
    kernels.gated_gelu(tensor(48, pixels, 8 * channels))
    kernels.temporal_attention(tensor(48, pixels, 3 * channels), 8, 24)


def _spilled(code: Any, folder: Path) -> int:
    """Bytes of a thread that found no register."""
    path = folder / "kernel.cubin"
    path.write_bytes(code.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    usage = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    return sum(int(size) for size in re.search(r"STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage).groups())


@pytest.mark.parametrize(("architecture", "dtype"), TARGETS)
def test_they_compile(launches: Callable, tmp_path: Path, architecture: int, dtype: torch.dtype) -> None:
    for launch in launches([(256, 1280)], dtype):
        code = launch.compiled(architecture)
        assert code.asm["cubin"].startswith(b"\x7fELF")
        assert code.metadata.shared <= SHARED_MEMORY, launch
        assert _spilled(code, tmp_path) == 0, launch


def test_16_bit_rows_are_read_16_bytes_at_a_time(launches: Callable, tmp_path: Path) -> None:
    kinds = launches(SIZES, torch.float16)
    assert len({launch.kernel.__name__ for launch in kinds}) == 7
    for launch in kinds:
        code = launch.compiled(90)
        assert code.metadata.shared <= SHARED_MEMORY and _spilled(code, tmp_path) == 0, launch
        narrow = [access for access in re.findall(r"(?:ld|st)\.global\S*", code.asm["ptx"]) if "v4.b32" not in access]
        if launch.kernel is not programs.group_scales:  # which reads float32 statistics, of 10 channels at a time
            assert len(narrow) <= 4, (launch, narrow)  # parameters, or statistics: a few numbers for many rows
        assert re.search(r"tensor<\d+x\d+xi64>", code.asm["ttir"]), launch  # offsets may pass 2^31
        if launch.kernel is programs.temporal_attention:
            assert "mma.sync" in code.asm["ptx"]  # the tensor cores


def test_sizes_of_one_compile(launches: Callable) -> None:
    """Triton makes a constant of an argument that is one."""
    for launch in launches([(1, 32)], torch.float16):
        assert launch.compiled(90).asm["cubin"]
