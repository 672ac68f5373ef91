"""`Denoiser` as a GPU likes it: hidden states are rows of channels from the input convolution to the output's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexpress_trt.export.nets.denoiser import Denoiser
from vexpress_trt.export.nets.fused.blocks import FusedMotion, FusedResnet, FusedTransformer, Read
from vexpress_trt.export.nets.fused.hidden import Hidden, Size, as_images, as_rows, convolve
from vexpress_trt.export.nets.fused.weights import channels_last, side_by_side
from vexpress_trt.export.nets.unet import UNetBlock


@dataclass(frozen=True)
class Call:
    """What the layers take in turn: resnets their shifts [N, C], transformers what they read."""

    shifts: Iterator[Tensor]
    reads: Iterator[Read]
    frames: int


class FusedLayer(nn.Module):
    """A resnet, and the transformer and motion module behind it where there are any."""

    def __init__(
        self, resnet: nn.Module, attention: nn.Module | None, motion: nn.Module | None, *, guided: bool
    ) -> None:
        super().__init__()
        self.resnet = FusedResnet(resnet)
        self.attention = None if attention is None else FusedTransformer(attention, guided=guided)
        self.motion = None if motion is None else FusedMotion(motion)

    def forward(self, hidden: Hidden, call: Call, skip: Tensor | None = None) -> Hidden:
        """`skip`: the rows of the skip connection that comes in here."""
        hidden = self.resnet(hidden, next(call.shifts), skip)
        if self.attention is not None:
            hidden = self.attention(hidden, next(call.reads))
        return hidden if self.motion is None else self.motion(hidden, call.frames)


class FusedBlock(nn.Module):
    """The layers of one stage and the convolution of its down- or up-sampler, if it has one."""

    def __init__(self, block: UNetBlock, *, guided: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FusedLayer(*modules, guided=guided) for modules in block.layers())
        samplers = [*block.downsamplers, *block.upsamplers]
        self.sampler = channels_last(samplers[0].conv) if samplers else None

    def resampled(self, hidden: Hidden, size: Size | None = None) -> Hidden:
        """Scaled up to `size` if that is given, then through the sampler's convolution."""
        images = as_images(hidden.settled(), hidden.size)
        if size is not None:
            images = F.interpolate(images, size=size, mode="nearest")
        images = convolve(self.sampler, images, bias=True)
        return Hidden(as_rows(images), images.shape[-2:])


class FusedDenoiser(nn.Module):
    """What `Denoiser` computes, up to rounding.

    It takes over a denoiser's weights: those are laid out anew and joined. The denoiser goes on working and sees the
    same memory, as long as neither is moved or cast.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.guided = denoiser.guided
        self.conv_in, self.conv_out = channels_last(denoiser.conv_in), channels_last(denoiser.conv_out)
        self.conv_norm_out, self.time_embedding = denoiser.conv_norm_out, denoiser.time_embedding
        blocks = [*denoiser.down_blocks, denoiser.mid_block, *denoiser.up_blocks]
        resnets = [resnet for block in blocks for resnet in block.resnets]
        self._widths = [resnet.time_emb_proj.out_features for resnet in resnets]
        biases = torch.cat([resnet.time_emb_proj.bias + resnet.conv1.bias for resnet in resnets])
        self.time_projection = side_by_side([resnet.time_emb_proj for resnet in resnets], biases)
        self.down_blocks = nn.ModuleList(FusedBlock(block, guided=self.guided) for block in denoiser.down_blocks)
        self.mid_block = FusedBlock(denoiser.mid_block, guided=self.guided)
        self.up_blocks = nn.ModuleList(FusedBlock(block, guided=self.guided) for block in denoiser.up_blocks)
        self.eval()

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
        """As `Denoiser.forward`."""
        dtype = self.conv_in.weight.dtype
        batch, frames = latents.shape[:2]
        audio = tokens.flatten(0, 1).to(dtype)
        pairs = zip(keys_values[::2], keys_values[1::2], strict=True)
        reads = (Read(audio, reference_weight, audio_weight, key, value) for key, value in pairs)
        call = Call(self._shifts(timestep, frames), reads, frames)
        hidden = self._walk(self._enter(latents.flatten(0, 1).to(dtype), kps_feature.flatten(0, 1).to(dtype)), call)
        normed = hidden.normed(self.conv_norm_out, silu=True)
        images = convolve(self.conv_out, as_images(normed, hidden.size), bias=True)
        return images.unflatten(0, (-1, batch, frames)).transpose(0, 1).float()

    def _shifts(self, timestep: Tensor, frames: int) -> Iterator[Tensor]:
        """For every resnet what its first convolution's result is shifted by: [N, C]."""
        halves = 2 if self.guided else 1
        projected = self.time_projection(F.silu(self.time_embedding(timestep)))  # [B, all channels]
        for shift in projected.split(self._widths, dim=1):
            yield shift[None, :, None].expand(halves, -1, frames, -1).flatten(0, 2)

    def _enter(self, latents: Tensor, kps_feature: Tensor) -> Hidden:
        """latents: [B*F, 4, h, w]; kps_feature: [B*F, C, h, w]. The unconditional half of the result comes first."""
        images = latents.contiguous(memory_format=torch.channels_last)
        images = convolve(self.conv_in, images, bias=not self.guided)
        rows, feature = as_rows(images), kps_feature.flatten(2).transpose(1, 2)
        if not self.guided:
            return Hidden(rows.add_(feature), images.shape[-2:])
        both = rows.new_empty(2, *rows.shape)
        torch.add(rows, self.conv_in.bias, out=both[0])
        torch.add(both[0], feature, out=both[1])
        return Hidden(both.flatten(0, 1), images.shape[-2:])

    def _walk(self, hidden: Hidden, call: Call) -> Hidden:
        skips = [hidden]
        for block in self.down_blocks:
            for layer in block.layers:
                hidden = layer(hidden, call)
                skips.append(hidden)
            if block.sampler is not None:
                hidden = block.resampled(hidden)
                skips.append(hidden)
        for layer in self.mid_block.layers:
            hidden = layer(hidden, call)
        for block in self.up_blocks:
            for layer in block.layers:
                hidden = layer(hidden, call, skips.pop().settled())
            if block.sampler is not None:
                hidden = block.resampled(hidden, skips[-1].size)
        return hidden
