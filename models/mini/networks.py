"""V-Express's own networks in the form that is trained: several portraits at once, conditions that can be left out.

Parameters have the official names, so that the trained weights need no conversion.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexpress_trt.export.nets.audio_projection import AudioProjection
from vexpress_trt.export.nets.blocks import merge_heads, split_heads
from vexpress_trt.export.nets.denoiser import Conditions
from vexpress_trt.export.nets.guider import KpsGuider
from vexpress_trt.export.nets.plain import PlainBlock, PlainDenoiser
from vexpress_trt.export.nets.reference import ReferenceNet
from vexpress_trt.models.mini.sizes import MINI


class PortraitBlock(PlainBlock):
    """The denoiser's block with one portrait for each window."""

    def forward(self, tokens: Tensor, conditions: Conditions, tap: Tensor) -> Tensor:
        """tokens: [P*F, T, C]; conditions.tokens: [P*F, 5, C]; tap: [P, S, C], zero where the portrait is withheld."""
        tokens = tokens + self.attn1(self.norm1(tokens))
        look = self.attn1_5
        # A window's frames are folded into the query axis: keys and values are made once per portrait.
        query = split_heads(look.to_q(self.norm1_5(tokens)).view(len(tap), -1, tap.shape[-1]), look.heads)
        key, value = split_heads(look.to_k(tap), look.heads), split_heads(look.to_v(tap), look.heads)
        seen = look.to_out[0](merge_heads(F.scaled_dot_product_attention(query, key, value))).view(tokens.shape)
        tokens = tokens + seen * conditions.reference_weight
        tokens = tokens + self.attn2(self.norm2(tokens), conditions.tokens) * conditions.audio_weight
        return tokens + self.ff(self.norm3(tokens))


class PortraitDenoiser(PlainDenoiser):
    """The denoiser for P windows of F frames, each with its portrait; without the motion modules unless `moving`."""

    block = PortraitBlock
    moving = False

    def walk(self, hidden: Tensor, layer) -> Tensor:
        if self.moving:
            return super().walk(hidden, layer)
        return super().walk(hidden, lambda hidden, resnet, attention, _motion: layer(hidden, resnet, attention, None))

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
        """As `Denoiser.forward` without guidance, with taps [P, tokens, channels]; returns [P, F, 4, h, w]."""
        conditions = self._conditions(tokens.flatten(0, 1), reference_weight, audio_weight)
        return self._predict(latents, timestep, kps_feature, conditions, [(tap,) for tap in taps])[:, 0]


@dataclass(frozen=True)
class Window:
    """P windows of F frames to be denoised, and their conditions. Those withheld have a 0 in `keep` [P, 3].

    `latents` [P, F, 4, h, w], noisy; `timestep` [P] float32; `portrait` [P, 4, h, w]; `audio` [P, F, 10, D], the rows
    that each frame hears; `guide` [P, F, 3, 8h, 8w] in 0..1; `keep` in the order portrait, audio, key points.
    """

    latents: Tensor
    timestep: Tensor
    portrait: Tensor
    audio: Tensor
    guide: Tensor
    keep: Tensor


class SmallVExpress(nn.Module):
    """All four networks that are trained together."""

    def __init__(self) -> None:
        super().__init__()
        configs = MINI.networks()
        self.reference_net = ReferenceNet(configs.unet)
        self.denoising_unet = PortraitDenoiser(configs.unet, configs.motion, guided=False)
        self.v_kps_guider = KpsGuider(configs.guider)
        self.audio_projection = AudioProjection(configs.projection)
        for name, module in self.denoising_unet.named_modules():
            if name.endswith("temporal_transformer"):  # motion modules start as if they were not there
                nn.init.zeros_(module.proj_out.weight)
                nn.init.zeros_(module.proj_out.bias)

    def forward(
        self, window: Window, reference_weight: Tensor | float = 1.0, audio_weight: Tensor | float = 1.0
    ) -> Tensor:
        """The prediction for all frames, float32 [P, F, 4, h, w]; weights are [P] or one number."""
        portrait, audio, points = window.keep.T[:, :, None, None]
        size = window.latents.shape[:2]
        taps = [tap * portrait for tap in self.reference_net(window.portrait)]
        tokens = self.audio_projection(window.audio.flatten(0, 1)).unflatten(0, size) * audio[..., None]
        feature = self.v_kps_guider(window.guide.flatten(0, 1)).unflatten(0, size) * points[..., None, None]
        weights = (
            torch.as_tensor(weight, device=window.keep.device).expand(size[0])[:, None].expand(size).reshape(-1, 1, 1)
            for weight in (reference_weight, audio_weight)
        )
        return self.denoising_unet(window.latents, window.timestep, tokens, feature, taps, *weights)
