"""The denoising network as it is defined, without savings: what the exact form is compared with and timed against."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vexpress_trt.export.nets.blocks import Attention
from vexpress_trt.export.nets.denoiser import Conditions, Denoiser, ReadingBlock


class PlainBlock(ReadingBlock):
    """Projects the reference for every frame of every call, and computes both halves whole."""

    def __init__(self, channels: int, heads: int, cross_attention_dim: int):
        super().__init__(channels, heads, cross_attention_dim)
        self.attn1_5 = Attention(channels, heads)

    def forward(self, tokens: Tensor, conditions: Conditions, tap: Tensor) -> Tensor:
        """tokens: [G*B*F, T, C]; conditions.tokens: [G*B*F, 5, C]; tap: [1, S, C]."""
        if conditions.guided:
            half = tokens.shape[0] // 2
            reference = torch.cat([torch.zeros_like(tap).expand(half, -1, -1), tap.expand(half, -1, -1)])
        else:
            reference = tap.expand(tokens.shape[0], -1, -1)
        tokens = tokens + self.attn1(self.norm1(tokens))
        tokens = tokens + self.attn1_5(self.norm1_5(tokens), reference) * conditions.reference_weight
        tokens = tokens + self.attn2(self.norm2(tokens), conditions.tokens) * conditions.audio_weight
        return tokens + self.ff(self.norm3(tokens))


class PlainDenoiser(Denoiser):
    """`Denoiser` with the whole official layout; takes the reference's taps in place of keys and values."""

    block = PlainBlock

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        tokens: Tensor,
        kps_feature: Tensor,
        taps: Sequence[Tensor],
        reference_weight: Tensor,
        audio_weight: Tensor,
    ) -> Tensor:
        """As `Denoiser.forward`, with taps [1, tokens, channels] as `ReferenceNet` returns them."""
        tokens = tokens.flatten(0, 1)
        if self.guided:
            tokens = torch.cat([torch.zeros_like(tokens), tokens])
        conditions = self._conditions(tokens, reference_weight, audio_weight)
        return self._predict(latents, timestep, kps_feature, conditions, [(tap,) for tap in taps])
