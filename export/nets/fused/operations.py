"""What the fused denoiser does between its matrix products, each in one or two passes over memory.

Hidden states are rows, [N, T, C]: images, pixels, channels; contiguous (a kernel copies rows that are not). Statistics
are taken in float32 and results rounded to the rows' dtype. These are the plain forms, which define the results;
tensors of a GPU go through Triton kernels that compute the same (export/nets/fused/kernels.py), unless `why_plain`
gives a reason why not. An operation's `__wrapped__` is its plain form on every device.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Given = ParamSpec("Given")
Result = TypeVar("Result")


def why_plain(device: torch.device) -> str | None:
    """Why operations on tensors of `device` take their plain forms, in words; None where the kernels serve them."""
    return _obstacle(device) if device.type == "cuda" else f"the kernels need a GPU, this is {device.type}"


@functools.cache
def _obstacle(device: torch.device) -> str | None:
    try:
        from vexpress_trt.export.nets.fused import kernels
    except ImportError as problem:
        return f"Triton is not installed ({problem}): pip install triton"
    row = torch.zeros(1, 1, 16, device=device)
    try:
        kernels.add_rows(row, row)
    except Exception as problem:  # of the C compiler, the driver or Triton, which share no kind of error
        return f"Triton cannot compile kernels here (it needs gcc and Python's headers): {problem}"
    return None


def _by_kernel(plain: Callable[Given, Result]) -> Callable[Given, Result]:
    """The operation that runs the kernel of the same name on tensors of a GPU, the plain form on others.

    A kernel that does not serve a case returns NotImplemented, and the plain form does.
    """

    @functools.wraps(plain)
    def operation(*given: Given.args, **named: Given.kwargs) -> Result:
        if why_plain(given[0].device) is None:
            from vexpress_trt.export.nets.fused import kernels

            result = getattr(kernels, plain.__name__)(*given, **named)
            if result is not NotImplemented:
                return result
        return plain(*given, **named)

    return operation


@_by_kernel
def add_rows(rows: Tensor, added: Tensor, shift: Tensor | None = None) -> Tensor:
    """rows [N, T, C] + added [N, T, C] + shift [C], summed in float32 and rounded once."""
    return _sum(rows, added, None, shift).to(rows.dtype)


@_by_kernel
def group_norm(
    rows: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, shift: Tensor | None = None, silu: bool
) -> Tensor:
    """Group norm of rows [N, T, C] + shift [N, C], over the pixels and a group's channels of each image; then SiLU."""
    return _group_norm(
        _sum(rows, None, None, None if shift is None else shift[:, None]), groups, weight, bias, eps, silu
    ).to(rows.dtype)


@_by_kernel
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
    """The sum of rows [N, T, C], added [N, T, C] and shift [C], rounded to their dtype, and the group norm of that.

    beside [N, T, D] are channels to follow those of the sum, for the norm too: both results are [N, T, C + D].
    """
    total = _sum(rows, added, None, shift).to(rows.dtype)
    if beside is not None:
        total = torch.cat([total, beside], dim=-1)
    return total, _group_norm(total.float(), groups, weight, bias, eps, silu).to(rows.dtype)


@_by_kernel
def layer_norm(rows: Tensor, weight: Tensor, bias: Tensor, eps: float, *, positions: Tensor | None = None) -> Tensor:
    """Layer norm over the channels of rows [N, T, C]; positions [F, C] are then added, row n takes number n % F."""
    return _layer_norm(rows.float(), weight, bias, eps, positions).to(rows.dtype)


@_by_kernel
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
    """The sum of rows [N, T, C], added [N, T, C] times scale [1], and shift [C], and the layer norm of that sum.

    The sum is rounded to the rows' dtype first. positions as for `layer_norm`. Written to `out` where that is given,
    which is contiguous and whose sum may be `rows` itself.
    """
    total = _sum(rows, added, scale, shift).to(rows.dtype)
    normed = _layer_norm(total.float(), weight, bias, eps, positions).to(rows.dtype)
    if out is None:
        return total, normed
    return out[0].copy_(total), out[1].copy_(normed)


@_by_kernel
def gated_gelu(projected: Tensor) -> Tensor:
    """[N, T, 2 D] -> [N, T, D]: the first half of the channels times the exact GELU of the second."""
    value, gate = projected.float().chunk(2, dim=-1)
    return (value * F.gelu(gate)).to(projected.dtype)


@_by_kernel
def temporal_attention(projected: Tensor, heads: int, frames: int) -> Tensor:
    """Attention over the frames of a window, separately for every pixel and head.

    projected: query, key and value side by side, [W * frames, T, 3 C], frames of a window one after the other
    -> [W * frames, T, C]. More than 32 frames, or heads of more than 256 channels, take the plain form on GPUs too.
    """
    query, key, value = (
        part.unflatten(0, (-1, frames)).unflatten(-1, (heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1)
        for part in projected.chunk(3, dim=-1)
    )  # [W * T, heads, frames, C / heads]
    attended = F.scaled_dot_product_attention(query, key, value)
    pixels = projected.shape[1]
    return attended.unflatten(0, (-1, pixels)).permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1).contiguous()


def _sum(rows: Tensor, added: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """In float32."""
    total = rows.float()
    if added is not None:
        total = total + (added.float() if scale is None else added.float() * scale.float())
    return total if shift is None else total + shift.float()


def _group_norm(rows: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    normed = F.group_norm(rows.transpose(1, 2), groups, weight.float(), bias.float(), eps).transpose(1, 2)
    return (F.silu(normed) if silu else normed).contiguous()


def _layer_norm(rows: Tensor, weight: Tensor, bias: Tensor, eps: float, positions: Tensor | None) -> Tensor:
    normed = F.layer_norm(rows, rows.shape[-1:], weight.float(), bias.float(), eps)
    if positions is None:
        return normed
    places = torch.arange(len(rows), device=rows.device) % len(positions)
    return normed + positions.float()[places, None]
