"""Building blocks shared by the networks; parameter names are those of the official checkpoints."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Cosine-first sinusoid of the timestep, then two linear layers (golden README, section 4, time embedding)."""

    def __init__(self, channels: int, embedding_dim: int):
        super().__init__()
        self.channels = channels
        self.linear_1 = nn.Linear(channels, embedding_dim)
        self.linear_2 = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, timestep: Tensor) -> Tensor:
        """timestep: [B] float32 -> [B, 4*C0] in the module's dtype."""
        half = self.channels // 2
        # The angles reach 999 radians: 16-bit floats would lose them, so this stays in float32 whatever the weights.
        exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) * (-math.log(10000.0) / half)
        angles = timestep.float()[:, None] * exponent.exp()[None]
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(sinusoid)))


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with the time embedding between them, and a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int, groups: int, eps: float):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding_dim, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """hidden: [N, Cin, H, W]; embedding: [N or 1, E], already through SiLU -> [N, Cout, H, W]."""
        residual = hidden if self.conv_shortcut is None else self.conv_shortcut(hidden)
        hidden = self.conv1(F.silu(self.norm1(hidden)))
        hidden = hidden + self.time_emb_proj(embedding)[:, :, None, None]
        return residual + self.conv2(F.silu(self.norm2(hidden)))


class Downsampler(nn.Module):
    """Halves height and width (rounding up) by a strided convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(hidden)


class Upsampler(nn.Module):
    """Nearest-neighbour up-sampling to the size of the next skip connection, then a convolution.

    For an odd size n the source has (n+1)/2 rows and nearest-to-size equals doubling and dropping the last row.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(hidden, size=size, mode="nearest"))


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[N, T, C] -> [N, heads, T, C/heads]."""
    return tokens.unflatten(-1, (heads, tokens.shape[-1] // heads)).transpose(1, 2)


def merge_heads(tokens: Tensor) -> Tensor:
    """[N, heads, T, D] -> [N, T, heads*D]."""
    return tokens.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    """Multi-head attention with bias-free query, key and value projections and a biased output projection."""

    def __init__(self, channels: int, heads: int, context_channels: int | None = None):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels or channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """tokens: [N, T, C]; context: [N, S, Cc], the tokens themselves if None -> [N, T, C]."""
        context = tokens if context is None else context
        query = split_heads(self.to_q(tokens), self.heads)
        key, value = split_heads(self.to_k(context), self.heads), split_heads(self.to_v(context), self.heads)
        return self.to_out[0](merge_heads(F.scaled_dot_product_attention(query, key, value)))


class GatedProjection(nn.Module):
    """GEGLU: half of a linear layer's output, gated by the exact GELU of the other half."""

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        value, gate = self.proj(tokens).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU feed-forward layer, four times as wide inside. The middle entry of `net` is the original's dropout."""

    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(
            GatedProjection(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)


class SpatialTransformer(nn.Module):
    """GroupNorm and 1x1 convolutions around one transformer block over the pixels of each frame."""

    def __init__(self, channels: int, groups: int, block: nn.Module, *, closed: bool = True):
        """`closed=False` leaves out the output projection, for a transformer of which only the inside is used."""
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([block])
        self.proj_out = nn.Conv2d(channels, channels, 1) if closed else None

    def enter(self, hidden: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, H*W, C]."""
        return self.proj_in(self.norm(hidden)).flatten(2).transpose(1, 2)

    def leave(self, tokens: Tensor, residual: Tensor) -> Tensor:
        """tokens: [N, H*W, C]; residual: [N, C, H, W] -> [N, C, H, W]."""
        return residual + self.proj_out(tokens.transpose(1, 2).unflatten(2, residual.shape[-2:]))

    def forward(self, hidden: Tensor, *context) -> Tensor:
        return self.leave(self.transformer_blocks[0](self.enter(hidden), *context), hidden)
