"""The skeleton both UNets share: blocks of resnets, transformers and samplers, and the order in which they run."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vexpress_trt.export.nets.blocks import Downsampler, ResnetBlock, TimeEmbedding, Upsampler
from vexpress_trt.export.nets.configs import Stage, UNetConfig

Factory = Callable[[Stage, int], nn.Module]  # the stage and the index within it


class UNetBlock(nn.Module):
    """The modules of one stage. Missing kinds are empty lists, so they add no keys to the state dict."""

    def __init__(self, stage: Stage, config: UNetConfig, attention: Factory, motion: Factory | None):
        super().__init__()
        self.attentions = nn.ModuleList(attention(stage, index) for index in range(stage.attentions))
        self.resnets = nn.ModuleList(
            ResnetBlock(size_in, size_out, config.time_embedding_dim, config.norm_num_groups, config.norm_eps)
            for size_in, size_out in stage.resnets
        )
        motions = range(stage.motions if motion is not None else 0)
        self.motion_modules = nn.ModuleList(motion(stage, index) for index in motions)
        samplers = [stage.channels] if stage.resample else []
        self.downsamplers = nn.ModuleList(Downsampler(size) for size in samplers if stage.kind == "down")
        self.upsamplers = nn.ModuleList(Upsampler(size) for size in samplers if stage.kind == "up")

    def layers(self):
        """(resnet, spatial transformer or None, motion module or None) in execution order."""
        for index, resnet in enumerate(self.resnets):
            attention = self.attentions[index] if index < len(self.attentions) else None
            motion = self.motion_modules[index] if index < len(self.motion_modules) else None
            yield resnet, attention, motion


class UNetSkeleton(nn.Module):
    """Input convolution, time embedding and the blocks of `stages`, which may stop before the last one."""

    def __init__(self, config: UNetConfig, stages: Sequence[Stage], attention: Factory, motion: Factory | None = None):
        super().__init__()
        width = config.block_out_channels[0]
        self.conv_in = nn.Conv2d(config.in_channels, width, 3, padding=1)
        self.time_embedding = TimeEmbedding(width, config.time_embedding_dim)

        def build(kind: str) -> list[UNetBlock]:
            return [UNetBlock(stage, config, attention, motion) for stage in stages if stage.kind == kind]

        self.down_blocks = nn.ModuleList(build("down"))
        (self.mid_block,) = build("mid")
        self.up_blocks = nn.ModuleList(build("up"))

    def walk(self, hidden: Tensor, layer: Callable[..., Tensor]) -> Tensor:
        """Runs all blocks on hidden [N, C0, h, w]; `layer(hidden, resnet, attention, motion)` runs one layer."""
        skips = [hidden]
        for block in self.down_blocks:
            for modules in block.layers():
                hidden = layer(hidden, *modules)
                skips.append(hidden)
            for sampler in block.downsamplers:
                hidden = sampler(hidden)
                skips.append(hidden)
        for modules in self.mid_block.layers():
            hidden = layer(hidden, *modules)
        for block in self.up_blocks:
            for modules in block.layers():
                hidden = layer(torch.cat([hidden, skips.pop()], dim=1), *modules)
            for sampler in block.upsamplers:
                hidden = sampler(hidden, skips[-1].shape[-2:])
        return hidden


def transformer_names(config: UNetConfig) -> list[str]:
    """Module paths of the transformer blocks in execution order, which is the order of taps, keys and values."""
    names, seen = [], {"down": 0, "up": 0}
    for stage in config.stages():
        prefix = "mid_block"
        if stage.kind != "mid":
            prefix = f"{stage.kind}_blocks.{seen[stage.kind]}"
            seen[stage.kind] += 1
        names += [f"{prefix}.attentions.{index}.transformer_blocks.0" for index in range(stage.attentions)]
    return names
