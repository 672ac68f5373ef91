"""The operations of the fused denoiser by Triton, for float32, float16 and bfloat16 rows on a GPU.

Arguments and results are those of `operations`. Nothing is tuned at run time, which would upset the capture of a CUDA
graph: the first call of each shape compiles, the next ones only launch, on the tensors' device and torch's current
stream. Block sizes were chosen for 16-bit rows by two aims: 48 KB of loads in flight on every multiprocessor, of which
an H100's memory needs about 20 (3.35 TB/s times 0.7 us, over 132) and an H200's 25, with the registers that this leaves
each thread; and at least 960 programs at each level of a denoiser call on 24 guided frames of 64x64 latents.
"""

import torch
import triton
from torch import Tensor

from vexpress_trt.export.nets.fused import programs

# Columns of a tile: 128 bytes of 16-bit numbers, a cache line. 320, 640, 960 .. 2560 channels are multiples of it.
CHANNELS = 64
# Rows of a tile of 8 warps, at most: two 16-byte accesses a thread and tensor, 32 to 42 registers.
ROWS = 64
# The same where statistics are taken: four accesses, 64 registers. What is kept of a tile is 1/32 of its bytes.
PART_ROWS = 128
# Numbers in a tile of whole rows, at most, for each of 4 warps: four accesses, 56 to 72 registers.
WHOLE_ROWS = 1024
# What one program of the temporal attention holds.
MOST_FRAMES, MOST_HEAD_CHANNELS = 32, 256


def add_rows(rows: Tensor, added: Tensor, shift: Tensor | None = None) -> Tensor:
    rows, added, shift = _dense(rows, added, shift)
    total = torch.empty_like(rows)
    _over_tiles(programs.add_rows, ROWS, 1, rows.shape[:2].numel(), rows.shape[2], rows, added, shift, total)
    return total


def group_norm(
    rows: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, shift: Tensor | None = None, silu: bool
) -> Tensor:
    rows, shift = _dense(rows, shift)
    moments = _moments(rows, None, None, None, None)
    return _normalised(rows, moments, groups, weight, bias, eps, shift, silu)


def add_group_norm(
    rows: Tensor,
    added: Tensor | None,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    shift: Tensor | None = None,
    beside: Tensor | None = None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    rows, added, shift, beside = _dense(rows, added, shift, beside)
    total = rows.new_empty(*rows.shape[:2], rows.shape[2] + (0 if beside is None else beside.shape[2]))
    moments = _moments(rows, added, shift, beside, total)
    return total, _normalised(total, moments, groups, weight, bias, eps, None, silu)


def layer_norm(rows: Tensor, weight: Tensor, bias: Tensor, eps: float, *, positions: Tensor | None = None) -> Tensor:
    (rows,) = _dense(rows)
    normed = torch.empty_like(rows)
    _over_rows(rows, None, None, None, weight, bias, eps, positions, None, normed)
    return normed


def add_layer_norm(
    rows: Tensor,
    added: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    positions: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    rows, added, shift = _dense(rows, added, shift)
    total, normed = (torch.empty_like(rows), torch.empty_like(rows)) if out is None else out
    if not (total.is_contiguous() and normed.is_contiguous()):
        raise ValueError("add_layer_norm: out is not contiguous")
    _over_rows(rows, added, scale, shift, weight, bias, eps, positions, total, normed)
    return total, normed


def gated_gelu(projected: Tensor) -> Tensor:
    (projected,) = _dense(projected)
    gated = projected.new_empty(*projected.shape[:2], projected.shape[2] // 2)
    _over_tiles(programs.gated_gelu, ROWS, 1, gated.shape[:2].numel(), gated.shape[2], projected, gated)
    return gated


def temporal_attention(projected: Tensor, heads: int, frames: int) -> Tensor:
    images, pixels, channels = projected.shape[0], projected.shape[1], projected.shape[2] // 3
    head_channels = channels // heads
    if frames > MOST_FRAMES or head_channels > MOST_HEAD_CHANNELS:
        return NotImplemented
    (projected,) = _dense(projected)
    attended = projected.new_empty(images, pixels, channels)
    # tl.dot takes 16 rows, columns and channels or more.
    width, height = (max(16, triton.next_power_of_2(size)) for size in (head_channels, frames))
    # 100 to 135 registers a thread; in float32, which goes without tl.dot, up to 128.
    warps = max(1, width // (32 if projected.dtype == torch.float32 else 64))
    _launch(
        programs.temporal_attention,
        images // frames * pixels * heads,
        *(projected, attended, pixels, channels, heads),
        warps=warps,
        HEAD_CHANNELS=head_channels,
        WIDTH=width,
        FRAMES=frames,
        HEIGHT=height,
    )
    return attended


def _dense(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _moments(
    rows: Tensor, added: Tensor | None, shift: Tensor | None, beside: Tensor | None, total: Tensor | None
) -> Tensor:
    """Of every tile of rows, or of their sum with what is beside it, which is written to `total`: mean and centred
    square sum of each channel.

    [2, N, tiles, C] float32.
    """
    images, pixels, channels = (rows if total is None else total).shape
    tiles = triton.cdiv(pixels, _height(PART_ROWS, pixels))
    moments = rows.new_empty(2, images, tiles, channels, dtype=torch.float32)
    _over_tiles(
        *(programs.sum_and_moments, PART_ROWS, images, pixels, channels),
        *(rows, added, shift, beside, total, moments[0], moments[1], rows.shape[2]),
    )
    return moments


def _normalised(
    rows: Tensor,
    moments: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    shift: Tensor | None,
    silu: bool,
) -> Tensor:
    images, pixels, channels = rows.shape
    scales = rows.new_empty(2, images, channels, dtype=torch.float32)
    weight, bias = _dense(weight, bias)
    width = triton.next_power_of_2(channels // groups)
    _launch(
        programs.group_scales,
        images * groups,
        *(moments[0], moments[1], shift, weight, scales[0], scales[1], pixels, channels, groups),
        *(_height(PART_ROWS, pixels), eps),
        warps=4,
        WIDTH=width,
        # 8 numbers a thread: one step for 16 channels and 8192 pixels.
        STEP=max(1, 1024 // width),
    )
    normed = torch.empty_like(rows)
    _over_tiles(
        programs.scale_rows, ROWS, images, pixels, channels, rows, scales[0], scales[1], bias, normed, SILU=silu
    )
    return normed


def _height(most: int, pixels: int) -> int:
    """Rows of a tile; no fewer than 16, as every height is compiled for itself."""
    return min(most, max(16, triton.next_power_of_2(pixels)))


def _over_tiles(
    kernel: triton.JITFunction,
    most_rows: int,
    images: int,
    pixels: int,
    channels: int,
    *args: Tensor | int | None,
    **constants: bool,
) -> None:
    """Launch a kernel that takes pixels and channels after `args`, on every tile of every image."""
    rows = _height(most_rows, pixels)
    number = images * triton.cdiv(pixels, rows) * triton.cdiv(channels, CHANNELS)
    warps = max(1, 8 * rows // most_rows)
    _launch(kernel, number, *args, pixels, channels, warps=warps, ROWS=rows, CHANNELS=CHANNELS, **constants)


def _over_rows(
    rows: Tensor,
    added: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    positions: Tensor | None,
    total: Tensor | None,
    normed: Tensor,
) -> None:
    images, pixels, channels = rows.shape
    width = triton.next_power_of_2(channels)
    height = _height(max(1, 4 * WHOLE_ROWS // width), pixels)
    weight, bias, positions = _dense(weight, bias, positions)
    frames = 1 if positions is None else len(positions)
    _launch(
        programs.layer_norm,
        images * triton.cdiv(pixels, height),
        *(rows, added, scale, shift, weight, bias, positions, total, normed, pixels, channels, frames, eps),
        warps=max(1, height * width // WHOLE_ROWS),
        ROWS=height,
        WIDTH=width,
    )


def _launch(
    kernel: triton.JITFunction, number: int, *args: Tensor | int | float | None, warps: int, **constants: int
) -> None:
    """`number` programs on the device of the first argument. A grid's first axis has no limit that matters."""
    with torch.cuda.device_of(args[0]):
        kernel[(number,)](*args, num_warps=warps, enable_fp_fusion=True, **constants)
