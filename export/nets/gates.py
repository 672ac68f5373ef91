"""Gated projections (GEGLU) computed by two products, each with half of the weight.

Cutting one product's result in two leaves operands with gaps, of the widest tensors there are, for the element-wise
kernels behind it. The exporter does the same to its graphs, where it was measured to help on CPUs; on a GPU the part
`speed` of bench/gpu_check compares both and has not been run yet.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from vexpress_trt.export.nets.blocks import GatedProjection


class SeparateGates(nn.Module):
    """What GatedProjection computes. Its parameters are views of that one's: no memory is added."""

    def __init__(self, whole: GatedProjection) -> None:
        super().__init__()
        (value, gate), biases = whole.proj.weight.chunk(2), whole.proj.bias.chunk(2)
        self.value, self.gate = (_linear(*pair) for pair in zip((value, gate), biases, strict=True))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.value(tokens) * F.gelu(self.gate(tokens))


def separate_gates(module: nn.Module) -> nn.Module:
    """The module with all of its gated projections replaced, in place. Its weights must not be moved afterwards."""
    for child in list(module.modules()):
        for name, projection in list(child.named_children()):
            if isinstance(projection, GatedProjection):
                setattr(child, name, SeparateGates(projection))
    return module


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight, linear.bias = (nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
    return linear.eval()
