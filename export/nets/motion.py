"""Motion modules: attention over the frames of a window, separately for every pixel."""

import math

import torch
from torch import Tensor, nn

from vexpress_trt.export.nets.blocks import Attention, FeedForward
from vexpress_trt.export.nets.configs import MotionConfig


class PositionTable(nn.Module):
    """Sinusoid of the frame's index within the window: sine on even, cosine on odd channels, base 10000."""

    def __init__(self, channels: int, max_length: int):
        super().__init__()
        angles = torch.arange(max_length)[:, None] * torch.exp(
            torch.arange(0, channels, 2) * (-math.log(10000.0) / channels)
        )
        self.register_buffer("pe", torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None])

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, F, C] with F up to max_length."""
        return tokens + self.pe[:, : tokens.shape[1]]


class TemporalAttention(Attention):
    """Self attention over frames that sees the frame's position in query, key and value."""

    def __init__(self, channels: int, config: MotionConfig):
        super().__init__(channels, config.heads)
        self.pos_encoder = PositionTable(channels, config.max_length)

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(self.pos_encoder(tokens))


class TemporalBlock(nn.Module):
    """Temporal self attentions and a feed-forward layer, each normalised before and added to its input."""

    def __init__(self, channels: int, config: MotionConfig):
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            TemporalAttention(channels, config) for _ in range(config.attention_blocks)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(config.attention_blocks))
        self.ff = FeedForward(channels)
        self.ff_norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor) -> Tensor:
        for norm, attention in zip(self.norms, self.attention_blocks, strict=True):
            tokens = tokens + attention(norm(tokens))
        return tokens + self.ff(self.ff_norm(tokens))


class TemporalTransformer(nn.Module):
    """Group norm per frame and linear layers around one temporal block."""

    def __init__(self, channels: int, config: MotionConfig):
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList([TemporalBlock(channels, config)])
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, hidden: Tensor, frames: int) -> Tensor:
        """[N*F, C, H, W] -> the same; one transposition in and one out."""
        channels, height, width = hidden.shape[1:]
        pixels = self.norm(hidden).view(-1, frames, channels, height * width)
        tokens = pixels.permute(0, 3, 1, 2).flatten(0, 1)  # [N*H*W, F, C]
        tokens = self.proj_out(self.transformer_blocks[0](self.proj_in(tokens)))
        pixels = tokens.view(-1, height * width, frames, channels).permute(0, 2, 3, 1)
        return hidden + pixels.reshape(-1, channels, height, width)


class MotionModule(nn.Module):
    """The level of nesting that the official parameter names have."""

    def __init__(self, channels: int, config: MotionConfig):
        super().__init__()
        self.temporal_transformer = TemporalTransformer(channels, config)

    def forward(self, hidden: Tensor, frames: int) -> Tensor:
        """hidden: [N*F, C, H, W] with F = `frames` consecutive frames of each of N windows."""
        return self.temporal_transformer(hidden, frames)
