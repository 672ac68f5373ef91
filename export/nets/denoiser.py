"""The denoising network, with everything left out that cannot change its result.

* Keys and values of the attention to the reference are inputs, made once per portrait, and are shared by all frames.
* The unconditional half has zero reference, audio tokens and key-point feature, and query, key and value have no
  bias: both of its cross attentions are their weighted output bias. Only the conditional half computes them.
* Both halves start from the same latents and share the input convolution.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexpress_trt.export.nets.blocks import Attention, FeedForward, SpatialTransformer, merge_heads, split_heads
from vexpress_trt.export.nets.configs import MotionConfig, Stage, UNetConfig
from vexpress_trt.export.nets.motion import MotionModule
from vexpress_trt.export.nets.state import materialise
from vexpress_trt.export.nets.unet import UNetSkeleton


@dataclass(frozen=True)
class Conditions:
    """What the transformer blocks see besides the hidden state; weights are [1] in the module's dtype."""

    tokens: Tensor  # audio tokens [B*F, 5, C] of the conditional half
    reference_weight: Tensor
    audio_weight: Tensor
    guided: bool


class ReferenceAttention(nn.Module):
    """Attention of all frames to one portrait's keys and values."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, tokens: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """tokens: [N, T, C]; key, value: [1, heads, S, C/heads] -> [N, T, C].

        Frames are folded into the query axis, so that keys and values need no copy per frame.
        """
        query = split_heads(self.to_q(tokens).flatten(0, 1)[None], self.heads)
        attended = merge_heads(F.scaled_dot_product_attention(query, key, value))
        return self.to_out[0](attended).view(tokens.shape)


class ReadingBlock(nn.Module):
    """Self attention, attention to the reference, attention to the audio, feed-forward."""

    def __init__(self, channels: int, heads: int, cross_attention_dim: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm1_5 = nn.LayerNorm(channels)
        self.attn1_5 = ReferenceAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, heads, cross_attention_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, tokens: Tensor, conditions: Conditions, key: Tensor, value: Tensor) -> Tensor:
        """tokens: [G*B*F, T, C], the unconditional half first -> the same."""
        tokens = tokens + self.attn1(self.norm1(tokens))
        if conditions.guided:
            half = tokens.shape[0] // 2
            unconditional = tokens[:half] + self.without_conditions(conditions)
            conditional = self.attend_to_conditions(tokens[half:], conditions, key, value)
            tokens = torch.cat([unconditional, conditional])
        else:
            tokens = self.attend_to_conditions(tokens, conditions, key, value)
        return tokens + self.ff(self.norm3(tokens))

    def attend_to_conditions(self, tokens: Tensor, conditions: Conditions, key: Tensor, value: Tensor) -> Tensor:
        tokens = tokens + self.attn1_5(self.norm1_5(tokens), key, value) * conditions.reference_weight
        return tokens + self.attn2(self.norm2(tokens), conditions.tokens) * conditions.audio_weight

    def without_conditions(self, conditions: Conditions) -> Tensor:
        """What both attentions to the conditions add where those are zero: [C]."""
        reference, audio = self.attn1_5.to_out[0].bias, self.attn2.to_out[0].bias
        return reference * conditions.reference_weight + audio * conditions.audio_weight


class Denoiser(UNetSkeleton):
    """One denoising call on B windows of F frames: the prediction without and with the conditions, or only with."""

    block = ReadingBlock

    def __init__(self, config: UNetConfig, motion: MotionConfig, *, guided: bool):
        def attention(stage: Stage, _index: int) -> nn.Module:
            block = self.block(stage.channels, stage.heads, config.cross_attention_dim)
            return SpatialTransformer(stage.channels, config.norm_num_groups, block)

        def motion_module(stage: Stage, _index: int) -> nn.Module:
            return MotionModule(stage.channels, motion)

        super().__init__(config, config.stages(), attention, motion_module)
        width = config.block_out_channels[0]
        self.guided = guided
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, width, config.norm_eps)
        self.conv_out = nn.Conv2d(width, config.out_channels, 3, padding=1)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        tokens: Tensor,
        kps_feature: Tensor,
        keys_values: Sequence[Tensor],
        reference_weight: Tensor,
        audio_weight: Tensor,
    ) -> Tensor:
        """Predicts for every window and frame.

        latents: [B, F, 4, h, w] float32; timestep: [B] float32, one per window; tokens: [B, F, 5, C]; kps_feature:
        [B, F, C0, h, w]; keys_values: (key, value, key, ...) as `Reference` returns them; weights: [1] float32.
        Returns [B, G, F, 4, h, w] float32, with G = 2 (unconditional, conditional) if guided, else 1.
        """
        conditions = self._conditions(tokens.flatten(0, 1), reference_weight, audio_weight)
        pairs = zip(keys_values[::2], keys_values[1::2], strict=True)
        return self._predict(latents, timestep, kps_feature, conditions, pairs)

    def _conditions(self, tokens: Tensor, reference_weight: Tensor, audio_weight: Tensor) -> Conditions:
        dtype = self.conv_in.weight.dtype
        return Conditions(tokens.to(dtype), reference_weight.to(dtype), audio_weight.to(dtype), self.guided)

    def _predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        kps_feature: Tensor,
        conditions: Conditions,
        references: Iterable[tuple[Tensor, ...]],
    ) -> Tensor:
        """`references` holds what each transformer block takes of the reference, in execution order."""
        dtype = self.conv_in.weight.dtype
        halves = 2 if self.guided else 1
        batch, frames = latents.shape[:2]
        references = iter(references)
        # The batch axis of everything below is [halves * windows * frames], the unconditional half first.
        embedding = F.silu(self.time_embedding(timestep))[None, :, None]
        embedding = embedding.expand(halves, -1, frames, -1).flatten(0, 2)

        def layer(hidden: Tensor, resnet: nn.Module, attention: nn.Module | None, motion: nn.Module) -> Tensor:
            hidden = resnet(hidden, embedding)
            if attention is not None:
                hidden = attention(hidden, conditions, *next(references))
            return hidden if motion is None else motion(hidden, frames)

        hidden = self.conv_in(latents.flatten(0, 1).to(dtype))
        conditional = hidden + kps_feature.flatten(0, 1).to(dtype)
        hidden = torch.cat([hidden, conditional]) if self.guided else conditional
        hidden = self.walk(hidden, layer)
        hidden = self.conv_out(F.silu(self.conv_norm_out(hidden)))
        return hidden.unflatten(0, (halves, batch, frames)).transpose(0, 1).float()

    @classmethod
    def from_state_dict(
        cls, config: UNetConfig, motion: MotionConfig, state: Mapping[str, Tensor], *, guided: bool
    ) -> "Denoiser":
        """From the official denoising_unet and motion_module weights, merged into one dictionary."""
        return materialise(lambda: cls(config, motion, guided=guided), state)
