"""The key-point guider: rendered key points to a feature that is added behind the denoiser's input convolution."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from vexpress_trt.export.nets.configs import GuiderConfig
from vexpress_trt.export.nets.state import materialise


class KpsGuider(nn.Module):
    """3x3 convolutions with SiLU after each but the last; every second one of `blocks` halves the size."""

    def __init__(self, config: GuiderConfig):
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in zip(widths, widths[1:], strict=False):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, rgb: Tensor) -> Tensor:
        """rgb: [N, 3, 8h, 8w] in [0, 1] -> [N, C0, h, w] in the module's dtype."""
        hidden = F.silu(self.conv_in(rgb.to(self.conv_in.weight.dtype)))
        for block in self.blocks:
            hidden = F.silu(block(hidden))
        return self.conv_out(hidden)

    @classmethod
    def from_state_dict(cls, config: GuiderConfig, state: Mapping[str, Tensor]) -> "KpsGuider":
        """From the official v_kps_guider weights."""
        return materialise(lambda: cls(config), state)
