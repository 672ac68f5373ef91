"""The operations of the fused denoiser as Triton kernels, for float32, float16 and bfloat16 rows on a GPU.

Arguments and results are those of `operations`. Everything here is bound by memory: a kernel reads its inputs once, 16
bytes a thread and along the channels, and computes in float32. Sums have a fixed order, so every run gives the same
numbers. Offsets of rows are 64-bit: 96 images of 96x96 pixels with 2560 channels are more than 2^31 numbers.

Nothing is tuned at run time, which would upset the capture of a CUDA graph: the first call of each shape compiles, the
next ones only launch, on the tensors' device and torch's current stream. Block sizes were chosen for 16-bit rows by two
aims: 64 KB of loads in flight on every multiprocessor of an H100, whose memory needs about 20 (3.35 TB/s times 0.7 us,
over 132), within the registers that this leaves each thread; and at least 480 programs at each size of a denoiser call.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

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
    _over_tiles(_add_rows, ROWS, 1, rows.shape[:2].numel(), rows.shape[2], rows, added, shift, total)
    return total


def group_norm(
    rows: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, shift: Tensor | None = None, silu: bool
) -> Tensor:
    rows, shift = _dense(rows, shift)
    moments = _moments(rows, None, None, None)
    return _normalised(rows, moments, groups, weight, bias, eps, shift, silu)


def add_group_norm(
    rows: Tensor,
    added: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    shift: Tensor | None = None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    rows, added, shift = _dense(rows, added, shift)
    total = torch.empty_like(rows)
    moments = _moments(rows, added, shift, total)
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
    _over_tiles(_gated_gelu, ROWS, 1, gated.shape[:2].numel(), gated.shape[2], projected, gated)
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
        _temporal_attention,
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


def _moments(rows: Tensor, added: Tensor | None, shift: Tensor | None, total: Tensor | None) -> Tensor:
    """Of every tile of rows, or of their sum, which is written to `total`: mean and centred square sum of each channel.

    [2, N, tiles, C] float32.
    """
    images, pixels, channels = rows.shape
    tiles = triton.cdiv(pixels, _height(PART_ROWS, pixels))
    moments = rows.new_empty(2, images, tiles, channels, dtype=torch.float32)
    _over_tiles(
        _sum_and_moments, PART_ROWS, images, pixels, channels, rows, added, shift, total, moments[0], moments[1]
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
    tiles, size = moments.shape[2], channels // groups
    width = triton.next_power_of_2(size)
    _launch(
        _scales,
        images * groups,
        *(moments[0], moments[1], shift, weight, scales[0], scales[1], pixels, channels, groups, eps),
        warps=4,
        GROUP=size,
        WIDTH=width,
        TILES=tiles,
        # 16 numbers a thread, at most: one step for 16 channels and 16384 pixels.
        STEP=_height(max(1, 2048 // width), tiles),
        ROWS=_height(PART_ROWS, pixels),
    )
    normed = torch.empty_like(rows)
    _over_tiles(_scale, ROWS, images, pixels, channels, rows, scales[0], scales[1], bias, normed, SILU=silu)
    return normed


def _height(most: int, pixels: int) -> int:
    return min(most, triton.next_power_of_2(pixels))


def _over_tiles(
    kernel: triton.JITFunction,
    most_rows: int,
    images: int,
    pixels: int,
    channels: int,
    *args: Tensor | None,
    **constants: bool,
) -> None:
    """Launch a kernel that takes pixels and channels after `args`, on every tile of every image."""
    rows = _height(most_rows, pixels)
    programs = images * triton.cdiv(pixels, rows) * triton.cdiv(channels, CHANNELS)
    warps = max(1, 8 * rows // most_rows)
    _launch(kernel, programs, *args, pixels, channels, warps=warps, ROWS=rows, CHANNELS=CHANNELS, **constants)


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
        _layer_norm,
        images * triton.cdiv(pixels, height),
        *(rows, added, scale, shift, weight, bias, positions, total, normed, pixels, channels, frames, eps),
        warps=max(1, height * width // WHOLE_ROWS),
        ROWS=height,
        WIDTH=width,
    )


def _launch(
    kernel: triton.JITFunction, programs: int, *args: Tensor | int | float | None, warps: int, **constants: int
) -> None:
    """On the device of the first argument. Programs are numbered along one axis, which has no limit that matters."""
    with torch.cuda.device_of(args[0]):
        kernel[(programs,)](*args, num_warps=warps, enable_fp_fusion=True, **constants)


@triton.jit
def _tile(pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr, program):
    """(image, tile of the image, row of all images [ROWS], column [CHANNELS], inside [ROWS, CHANNELS]) of a program.

    Neighbours in number are neighbours along the channels.
    """
    chunks, tiles = tl.cdiv(channels, CHANNELS), tl.cdiv(pixels, ROWS)
    image, tile = (program // chunks // tiles).to(tl.int64), program // chunks % tiles
    row = tile * ROWS + tl.arange(0, ROWS)
    column = program % chunks * CHANNELS + tl.arange(0, CHANNELS)
    return image, tile, image * pixels + row, column, (row < pixels)[:, None] & (column < channels)[None]


@triton.jit
def _add_rows(rows, added, shift, total, pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    image, tile, row, column, inside = _tile(pixels, channels, ROWS, CHANNELS, tl.program_id(0))
    offset = row[:, None] * channels + column[None]
    value = tl.load(rows + offset, inside).to(tl.float32) + tl.load(added + offset, inside).to(tl.float32)
    if shift is not None:
        value += tl.load(shift + column, column < channels).to(tl.float32)[None]
    tl.store(total + offset, value, inside)


@triton.jit
def _sum_and_moments(
    rows, added, shift, total, means, squares, pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr
):
    image, tile, row, column, inside = _tile(pixels, channels, ROWS, CHANNELS, tl.program_id(0))
    offset = row[:, None] * channels + column[None]
    value = tl.load(rows + offset, inside, 0).to(tl.float32)
    if added is not None:
        value += tl.load(added + offset, inside, 0).to(tl.float32)
        if shift is not None:
            value += tl.load(shift + column, column < channels, 0).to(tl.float32)[None]
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + offset, rounded, inside)
        value = tl.where(inside, rounded.to(tl.float32), 0)
    mean = tl.sum(value, 0) / tl.minimum(pixels - tile * ROWS, ROWS)
    centred = tl.where(inside, value - mean[None], 0)
    place = (image * tl.cdiv(pixels, ROWS) + tile) * channels + column
    tl.store(means + place, mean, column < channels)
    tl.store(squares + place, tl.sum(centred * centred, 0), column < channels)


@triton.jit
def _scales(
    means,
    squares,
    shift,
    weight,
    centres,
    scales,
    pixels,
    channels,
    groups,
    eps,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    TILES: tl.constexpr,
    STEP: tl.constexpr,
    ROWS: tl.constexpr,
):
    """What a group norm takes off each channel of a group of an image, and the factor that follows.

    Means and centred square sums of parts give those of the whole without cancellation (Chan, Golub, LeVeque 1983).
    """
    image, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    lane = tl.arange(0, WIDTH)
    column, inside = group * GROUP + lane, lane < GROUP
    moved = tl.zeros([WIDTH], tl.float32)
    if shift is not None:
        moved = tl.load(shift + image * channels + column, inside, 0).to(tl.float32)
    count = pixels * GROUP
    summed = tl.zeros([STEP, WIDTH], tl.float32)
    for first in range(0, TILES, STEP):
        tile = first + tl.arange(0, STEP)
        place, known = (image * TILES + tile)[:, None] * channels + column[None], (tile < TILES)[:, None] & inside[None]
        size = tl.minimum(pixels - tile * ROWS, ROWS).to(tl.float32)
        summed += tl.where(known, size[:, None] * (tl.load(means + place, known, 0) + moved[None]), 0)
    mean = tl.sum(summed) / count
    summed = tl.zeros([STEP, WIDTH], tl.float32)
    for first in range(0, TILES, STEP):
        tile = first + tl.arange(0, STEP)
        place, known = (image * TILES + tile)[:, None] * channels + column[None], (tile < TILES)[:, None] & inside[None]
        size = tl.minimum(pixels - tile * ROWS, ROWS).to(tl.float32)
        away = tl.load(means + place, known, 0) + moved[None] - mean
        summed += tl.where(known, tl.load(squares + place, known, 0) + size[:, None] * away * away, 0)
    scale = tl.load(weight + column, inside, 0).to(tl.float32) / tl.sqrt(tl.sum(summed) / count + eps)
    tl.store(centres + image * channels + column, mean - moved, inside)
    tl.store(scales + image * channels + column, scale, inside)


@triton.jit
def _scale(
    rows,
    centres,
    scales,
    bias,
    normed,
    pixels,
    channels,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SILU: tl.constexpr,
):
    """Backwards through memory: what the statistics read last is still in the cache."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    image, tile, row, column, inside = _tile(pixels, channels, ROWS, CHANNELS, program)
    offset = row[:, None] * channels + column[None]
    place = image * channels + column
    value = tl.load(rows + offset, inside).to(tl.float32) - tl.load(centres + place, column < channels)[None]
    value *= tl.load(scales + place, column < channels)[None]
    value += tl.load(bias + column, column < channels).to(tl.float32)[None]
    if SILU:
        value = value / (1 + tl.exp(-value))
    tl.store(normed + offset, value, inside)


@triton.jit
def _layer_norm(
    rows,
    added,
    scale,
    shift,
    weight,
    bias,
    positions,
    total,
    normed,
    pixels,
    channels,
    frames,
    eps,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    tiles = tl.cdiv(pixels, ROWS)
    image = tl.program_id(0) // tiles
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, WIDTH)
    known = column < channels
    inside = (row < pixels)[:, None] & known[None]
    offset = (image.to(tl.int64) * pixels + row)[:, None] * channels + column[None]
    value = tl.load(rows + offset, inside, 0).to(tl.float32)
    if added is not None:
        more = tl.load(added + offset, inside, 0).to(tl.float32)
        if scale is not None:
            more *= tl.load(scale).to(tl.float32)
        value += more
    if shift is not None:
        value += tl.load(shift + column, known, 0).to(tl.float32)[None]
    if total is not None:
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + offset, rounded, inside)
        value = rounded.to(tl.float32)
    mean = tl.sum(value, 1) / channels
    centred = tl.where(inside, value - mean[:, None], 0)
    deviation = tl.sqrt(tl.sum(centred * centred, 1) / channels + eps)
    value = centred / deviation[:, None] * tl.load(weight + column, known, 0).to(tl.float32)[None]
    value += tl.load(bias + column, known, 0).to(tl.float32)[None]
    if positions is not None:
        value += tl.load(positions + image % frames * channels + column, known, 0).to(tl.float32)[None]
    tl.store(normed + offset, value, inside)


@triton.jit
def _gated_gelu(projected, gated, pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    image, tile, row, column, inside = _tile(pixels, channels, ROWS, CHANNELS, tl.program_id(0))
    source = projected + row[:, None] * (2 * channels) + column[None]
    value = tl.load(source, inside).to(tl.float32)
    gate = tl.load(source + channels, inside).to(tl.float32)
    tl.store(
        gated + row[:, None] * channels + column[None],
        value * gate * (0.5 + 0.5 * tl.erf(gate * 0.7071067811865476)),
        inside,
    )


@triton.jit
def _temporal_attention(
    projected,
    attended,
    pixels,
    channels,
    heads,
    HEAD_CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    FRAMES: tl.constexpr,
    HEIGHT: tl.constexpr,
):
    """One head of one pixel of a window; neighbours in number are the heads of a pixel, then the next pixel's."""
    program = tl.program_id(0)
    head, pixel, window = program % heads, program // heads % pixels, program // heads // pixels
    frame, lane = tl.arange(0, HEIGHT), tl.arange(0, WIDTH)
    first = window.to(tl.int64) * FRAMES * pixels + pixel
    row, column = first + frame.to(tl.int64) * pixels, head * HEAD_CHANNELS + lane
    known = lane < HEAD_CHANNELS
    inside = (frame < FRAMES)[:, None] & known[None]
    source = projected + row[:, None] * (3 * channels) + column[None]
    query = tl.load(source, inside, 0)
    # Scores in powers of two: log2(e) / sqrt(channels of a head).
    scale = 1.4426950408889634 / HEAD_CHANNELS**0.5
    if projected.dtype.element_ty == tl.float32:
        # The tensor cores do not take float32, and tl.dot without them holds more than there are registers.
        highest = tl.full([HEIGHT], float("-inf"), tl.float32)
        total = tl.zeros([HEIGHT], tl.float32)
        result = tl.zeros([HEIGHT, WIDTH], tl.float32)
        for other in range(FRAMES):
            key = projected + (first + other * pixels) * (3 * channels) + channels + column
            score = tl.sum(query * tl.load(key, known, 0)[None], 1) * scale
            higher = tl.maximum(highest, score)
            kept, weight = tl.exp2(highest - higher), tl.exp2(score - higher)
            total = total * kept + weight
            result = result * kept[:, None] + weight[:, None] * tl.load(key + channels, known, 0)[None]
            highest = higher
    else:
        key = tl.load(source + channels, inside, 0)
        value = tl.load(source + 2 * channels, inside, 0)
        scores = tl.where((frame < FRAMES)[None], tl.dot(query, tl.trans(key)) * scale, float("-inf"))
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        total = tl.sum(weights, 1)
        result = tl.dot(weights.to(value.dtype), value)
    tl.store(attended + row[:, None] * channels + column[None], result / total[:, None], inside)
