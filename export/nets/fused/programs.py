"""What one program on a GPU does in each kernel of `kernels`, in Triton's language.

Everything here is bound by memory: inputs are read once, 16 bytes a thread and along the channels, and computed with in
float32. Sums have a fixed order, so every run gives the same numbers. Offsets of rows are 64-bit: 96 images of 96x96
pixels with 2560 channels are more than 2^31 numbers. Triton compiles anew for numbers that are one or multiples of 16:
of use for channels, that 16 bytes are read at a time, and left out where it is not.
"""

import triton
import triton.language as tl


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


@triton.jit(do_not_specialize=["pixels"])
def add_rows(rows, added, shift, total, pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    image, tile, row, column, inside = _tile(pixels, channels, ROWS, CHANNELS, tl.program_id(0))
    offset = row[:, None] * channels + column[None]
    value = tl.load(rows + offset, inside).to(tl.float32) + tl.load(added + offset, inside).to(tl.float32)
    if shift is not None:
        value += tl.load(shift + column, column < channels).to(tl.float32)[None]
    tl.store(total + offset, value, inside)


@triton.jit(do_not_specialize=["pixels"])
def sum_and_moments(
    rows,
    added,
    shift,
    beside,
    total,
    means,
    squares,
    own,
    pixels,
    channels,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The first `own` channels are those of the rows, others lie beside them. A tile has one kind in all but the
    smallest networks, so that only one is read."""
    image, tile, row, column, inside = _tile(pixels, channels, ROWS, CHANNELS, tl.program_id(0))
    here, offset = inside & (column < own)[None], row[:, None] * own + column[None]
    value = tl.load(rows + offset, here, 0).to(tl.float32)
    if added is not None:
        value += tl.load(added + offset, here, 0).to(tl.float32)
        if shift is not None:
            value += tl.load(shift + column, column < own, 0).to(tl.float32)[None]
    if beside is not None:
        there = row[:, None] * (channels - own) + (column - own)[None]
        value += tl.load(beside + there, inside & (column >= own)[None], 0).to(tl.float32)
    if total is not None:
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + row[:, None] * channels + column[None], rounded, inside)
        value = tl.where(inside, rounded.to(tl.float32), 0)
    mean = tl.sum(value, 0) / tl.minimum(pixels - tile * ROWS, ROWS)
    centred = tl.where(inside, value - mean[None], 0)
    place = (image * tl.cdiv(pixels, ROWS) + tile) * channels + column
    tl.store(means + place, mean, column < channels)
    tl.store(squares + place, tl.sum(centred * centred, 0), column < channels)


@triton.jit(do_not_specialize=["pixels", "groups", "rows"])
def group_scales(
    means,
    squares,
    shift,
    weight,
    centres,
    scales,
    pixels,
    channels,
    groups,
    rows,
    eps,
    WIDTH: tl.constexpr,
    STEP: tl.constexpr,
):
    """What a group norm takes off each channel of a group of an image, and the factor that follows.

    The statistics are of tiles of `rows` rows, of which STEP are taken at a time; a group has at most WIDTH channels.

    Means and centred square sums of parts give those of the whole without cancellation (Chan, Golub, LeVeque 1983).
    """
    image, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    size, lane = channels // groups, tl.arange(0, WIDTH)
    column, inside = group * size + lane, lane < size
    moved = tl.zeros([WIDTH], tl.float32)
    if shift is not None:
        moved = tl.load(shift + image * channels + column, inside, 0).to(tl.float32)
    count, tiles = pixels * size, tl.cdiv(pixels, rows)
    summed = tl.zeros([STEP, WIDTH], tl.float32)
    for first in range(0, tiles, STEP):
        tile = first + tl.arange(0, STEP)
        place, known = (image * tiles + tile)[:, None] * channels + column[None], (tile < tiles)[:, None] & inside[None]
        height = tl.minimum(pixels - tile * rows, rows).to(tl.float32)
        summed += tl.where(known, height[:, None] * (tl.load(means + place, known, 0) + moved[None]), 0)
    mean = tl.sum(summed) / count
    summed = tl.zeros([STEP, WIDTH], tl.float32)
    for first in range(0, tiles, STEP):
        tile = first + tl.arange(0, STEP)
        place, known = (image * tiles + tile)[:, None] * channels + column[None], (tile < tiles)[:, None] & inside[None]
        height = tl.minimum(pixels - tile * rows, rows).to(tl.float32)
        away = tl.load(means + place, known, 0) + moved[None] - mean
        summed += tl.where(known, tl.load(squares + place, known, 0) + height[:, None] * away * away, 0)
    scale = tl.load(weight + column, inside, 0).to(tl.float32) / tl.sqrt(tl.sum(summed) / count + eps)
    tl.store(centres + image * channels + column, mean - moved, inside)
    tl.store(scales + image * channels + column, scale, inside)


@triton.jit(do_not_specialize=["pixels"])
def scale_rows(
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


@triton.jit(do_not_specialize=["frames"])
def layer_norm(
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


@triton.jit(do_not_specialize=["pixels"])
def gated_gelu(projected, gated, pixels, channels, ROWS: tl.constexpr, CHANNELS: tl.constexpr):
    image, tile, row, column, inside = _tile(pixels, channels, ROWS, CHANNELS, tl.program_id(0))
    source = projected + row[:, None] * (2 * channels) + column[None]
    value = tl.load(source, inside).to(tl.float32)
    gate = tl.load(source + channels, inside).to(tl.float32)
    tl.store(gated + row[:, None] * channels + column[None], value * gate * _normal_distribution(gate), inside)


@triton.jit
def _normal_distribution(x):
    """(1 + erf(x / sqrt(2))) / 2 to 6e-7, by Abramowitz and Stegun 7.1.26: tl.erf would take longer than the memory.

    The reciprocal is a root's, since a division has four instructions more."""
    away = 1 + 0.23164190 * tl.abs(x)
    t = tl.rsqrt(away * away)
    tail = 0.530702715 * t - 0.726576013
    tail = (tail * t + 0.710706871) * t - 0.142248368
    tail = (tail * t + 0.127414796) * t * tl.exp2(-0.7213475204444817 * x * x)
    return tl.where(x < 0, tail, 1 - tail)


@triton.jit(do_not_specialize=["pixels", "heads"])
def temporal_attention(
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
