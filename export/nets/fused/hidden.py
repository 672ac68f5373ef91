"""Hidden states as rows of channels, with a residual addition that waits for whoever reads them first."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vexpress_trt.export.nets.fused import operations

Size = tuple[int, int]  # height and width


@dataclass
class Hidden:
    """rows [N, T, C] of N images of T = height * width pixels; `added` [N, T, C] and `shift` [C] are still to be
    added to them. Whoever shares the object sees the sum once it is made."""

    rows: Tensor
    size: Size
    added: Tensor | None = None
    shift: Tensor | None = None

    def settled(self) -> Tensor:
        """The sum, [N, T, C]."""
        if self.added is not None:
            self._take(operations.add_rows(self.rows, self.added, self.shift))
        return self.rows

    def normed(self, norm: nn.GroupNorm, *, silu: bool, beside: Tensor | None = None) -> Tensor:
        """The group norm of the sum, [N, T, C]; the sum is made on the way. With `beside` [N, T, D] the sum has those
        channels behind its own from then on."""
        given = norm.num_groups, norm.weight, norm.bias, norm.eps
        if self.added is None and beside is None:
            return operations.group_norm(self.rows, *given, silu=silu)
        total, normed = operations.add_group_norm(
            self.rows, self.added, *given, shift=self.shift, beside=beside, silu=silu
        )
        self._take(total)
        return normed

    def _take(self, total: Tensor) -> None:
        self.rows, self.added, self.shift = total, None, None


def as_images(rows: Tensor, size: Size) -> Tensor:
    """Rows [N, T, C] seen as images [N, C, H, W], channels last."""
    return rows.unflatten(1, size).permute(0, 3, 1, 2)


def as_rows(images: Tensor) -> Tensor:
    """Images [N, C, H, W] seen as rows [N, H*W, C], never by a copy. ValueError if they lie otherwise."""
    rows = images.permute(0, 2, 3, 1)
    if not rows.is_contiguous():
        raise ValueError(f"images of strides {images.stride()} do not lie channels last")
    return rows.flatten(1, 2)


def convolve(conv: nn.Conv2d, images: Tensor, *, bias: bool) -> Tensor:
    """The convolution of images that lie channels last, with its bias or without.

    torch adds a bias in a pass of its own on a GPU: without one, whatever comes next adds it.
    """
    return F.conv2d(images, conv.weight, conv.bias if bias else None, conv.stride, conv.padding)
