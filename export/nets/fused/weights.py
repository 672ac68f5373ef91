"""Weights of a network, laid out as its fused form reads them. None is held twice: the network sees the same memory."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A layer on these tensors, [outputs, inputs] and [outputs]."""
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    layer.weight = frozen(weight)
    layer.bias = None if bias is None else frozen(bias)
    return layer.eval()


def side_by_side(layers: Sequence[nn.Linear], bias: Tensor | None = None) -> nn.Linear:
    """One layer for several of the same inputs, with another bias; their weights become views of its own."""
    whole = linear(torch.cat([layer.weight for layer in layers]), bias)
    for layer, part in zip(layers, whole.weight.split([layer.out_features for layer in layers]), strict=True):
        layer.weight = frozen(part)
    return whole


def pointwise(conv: nn.Conv2d, *, bias: bool = True) -> nn.Linear:
    """A 1x1 convolution as a layer on rows."""
    return linear(conv.weight.flatten(1), conv.bias if bias else None)


def channels_last(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution itself, its weight laid out as images that lie channels last need it."""
    conv.weight = frozen(conv.weight.contiguous(memory_format=torch.channels_last))
    return conv


def after_bias(layer: nn.Linear, bias: Tensor) -> nn.Linear:
    """The layer for inputs that lack a constant `bias` [inputs]: it is carried through into the layer's own."""
    carried = layer.bias.float() + layer.weight.float() @ bias.float()
    return linear(layer.weight, carried.to(layer.bias.dtype))
