"""What the fused denoiser does between its matrix products, each in one or two passes over memory.

Hidden states are rows, [N, T, C]: images, pixels, channels; contiguous unless said otherwise. Statistics are taken in
float32 and results rounded to the rows' dtype. These are the plain forms, which define the results; on a GPU that
Triton compiles for, `kernels` computes the same (export/nets/fused/kernels.py).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def add_rows(rows: Tensor, added: Tensor, shift: Tensor | None = None) -> Tensor:
    """rows [N, T, C] + added [N, T, C] + shift [C], summed in float32 and rounded once."""
    return _sum(rows, added, None, shift).to(rows.dtype)


def group_norm(
    rows: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, shift: Tensor | None = None, silu: bool
) -> Tensor:
    """Group norm of rows [N, T, C] + shift [N, C], over the pixels and a group's channels of each image; then SiLU."""
    return _group_norm(
        _sum(rows, None, None, None if shift is None else shift[:, None]), groups, weight, bias, eps, silu
    ).to(rows.dtype)


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
    """The sum of rows [N, T, C], added [N, T, C] and shift [C], rounded to their dtype, and the group norm of that."""
    total = add_rows(rows, added, shift)
    return total, _group_norm(total.float(), groups, weight, bias, eps, silu).to(rows.dtype)


def layer_norm(rows: Tensor, weight: Tensor, bias: Tensor, eps: float, *, positions: Tensor | None = None) -> Tensor:
    """Layer norm over the channels of rows [N, T, C]; positions [F, C] are then added, row n takes number n % F."""
    return _layer_norm(rows.float(), weight, bias, eps, positions).to(rows.dtype)


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
    whose sum may be `rows` itself.
    """
    total = _sum(rows, added, scale, shift).to(rows.dtype)
    normed = _layer_norm(total.float(), weight, bias, eps, positions).to(rows.dtype)
    if out is None:
        return total, normed
    return out[0].copy_(total), out[1].copy_(normed)


def gated_gelu(projected: Tensor) -> Tensor:
    """[N, T, 2 D] -> [N, T, D]: the first half of the channels times the exact GELU of the second."""
    value, gate = projected.float().chunk(2, dim=-1)
    return (value * F.gelu(gate)).to(projected.dtype)


def temporal_attention(projected: Tensor, heads: int, frames: int) -> Tensor:
    """Attention over the frames of a window, separately for every pixel and head.

    projected: query, key and value side by side, [W * frames, T, 3 C], frames of a window one after the other
    -> [W * frames, T, C].
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
    return F.silu(normed) if silu else normed


def _layer_norm(rows: Tensor, weight: Tensor, bias: Tensor, eps: float, positions: Tensor | None) -> Tensor:
    normed = F.layer_norm(rows, rows.shape[-1:], weight.float(), bias.float(), eps)
    if positions is None:
        return normed
    places = torch.arange(len(rows), device=rows.device) % len(positions)
    return normed + positions.float()[places, None]
