"""The reference network: what the denoiser attends to in the portrait, computed once per portrait."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexpress_trt.export.nets.blocks import Attention, FeedForward, SpatialTransformer, split_heads
from vexpress_trt.export.nets.configs import Stage, UNetConfig, up_to_last_attention
from vexpress_trt.export.nets.state import materialise
from vexpress_trt.export.nets.unet import UNetSkeleton, transformer_names


class OutputBias(nn.Module):
    """What is left of a cross attention to a zero context: its output bias (key and value have none)."""

    def __init__(self, channels: int):
        super().__init__()
        out = nn.Module()
        out.bias = nn.Parameter(torch.zeros(channels))
        self.to_out = nn.ModuleList([out])

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.to_out[0].bias


class WritingBlock(nn.Module):
    """Transformer block whose normalised tokens between self and cross attention are the tap."""

    def __init__(self, channels: int, heads: int, *, last: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = None if last else OutputBias(channels)
        self.norm3 = None if last else nn.LayerNorm(channels)
        self.ff = None if last else FeedForward(channels)

    def attend(self, tokens: Tensor) -> Tensor:
        return tokens + self.attn1(self.norm1(tokens))

    def finish(self, tokens: Tensor) -> Tensor:
        tokens = self.attn2(tokens)
        return tokens + self.ff(self.norm3(tokens))


class TappedTransformer(SpatialTransformer):
    """Spatial transformer that also returns its block's tap; the last one of the network returns nothing else."""

    def __init__(self, channels: int, heads: int, groups: int, *, last: bool):
        super().__init__(channels, groups, WritingBlock(channels, heads, last=last), closed=not last)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] -> the same and the tap [N, H*W, C]."""
        block = self.transformer_blocks[0]
        tokens = block.attend(self.enter(hidden))
        tap = block.norm2(tokens)
        if self.proj_out is None:
            return hidden, tap
        return self.leave(block.finish(tokens), hidden), tap


class ReferenceNet(UNetSkeleton):
    """Stable Diffusion's UNet at timestep 0 with a zero text, up to its last tap.

    It has no parameters that do not act: nothing after the last tap, no query, key or value of a cross attention.
    """

    def __init__(self, config: UNetConfig):
        stages = up_to_last_attention(config.stages())

        def attention(stage: Stage, index: int) -> nn.Module:
            last = stage is stages[-1] and index == stage.attentions - 1
            return TappedTransformer(stage.channels, stage.heads, config.norm_num_groups, last=last)

        super().__init__(config, stages, attention)

    def forward(self, latent: Tensor) -> list[Tensor]:
        """latent: [1, 4, h, w], scaled -> taps [1, tokens, channels] in execution order (down, mid, up)."""
        hidden = self.conv_in(latent.to(self.conv_in.weight.dtype))
        embedding = F.silu(self.time_embedding(latent.new_zeros(1, dtype=torch.float32)))
        taps = []

        def layer(hidden: Tensor, resnet: nn.Module, attention: nn.Module | None, _motion: None) -> Tensor:
            hidden = resnet(hidden, embedding)
            if attention is not None:
                hidden, tap = attention(hidden)
                taps.append(tap)
            return hidden

        self.walk(hidden, layer)
        return taps

    @classmethod
    def from_state_dict(cls, config: UNetConfig, state: Mapping[str, Tensor]) -> "ReferenceNet":
        """From the official reference_net weights; keys that do not act are ignored."""
        return materialise(lambda: cls(config), state)


class KeyValue(nn.Module):
    """Key and value projections of one of the denoiser's attentions to the reference."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)

    def forward(self, tap: Tensor) -> tuple[Tensor, Tensor]:
        """[1, tokens, C] -> key and value [1, heads, tokens, C/heads]."""
        return split_heads(self.to_k(tap), self.heads), split_heads(self.to_v(tap), self.heads)


class Reference(nn.Module):
    """The reference network followed by the denoiser's key and value projections of its taps."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.net = ReferenceNet(config)
        self.projections = nn.ModuleList(
            KeyValue(stage.channels, stage.heads) for stage in config.stages() for _ in range(stage.attentions)
        )

    def forward(self, latent: Tensor) -> tuple[Tensor, ...]:
        """latent: [1, 4, h, w] float32, scaled -> (key_00, value_00, key_01, ...) in execution order.

        Each is [1, heads, tokens, channels/heads] in the module's dtype.
        """
        taps = self.net(latent)
        pairs = [project(tap) for project, tap in zip(self.projections, taps, strict=True)]
        return tuple(tensor for pair in pairs for tensor in pair)

    @classmethod
    def from_state_dicts(
        cls, config: UNetConfig, reference: Mapping[str, Tensor], denoising: Mapping[str, Tensor]
    ) -> "Reference":
        """From the official reference_net and denoising_unet weights."""
        state = {f"net.{key}": tensor for key, tensor in reference.items()}
        for index, block in enumerate(transformer_names(config)):
            for name in ("to_k", "to_v"):
                state[f"projections.{index}.{name}.weight"] = denoising[f"{block}.attn1_5.{name}.weight"]
        return materialise(lambda: cls(config), state)
