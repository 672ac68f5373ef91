"""What a graph foretells before it is built: whether TensorRT reads it, and the least working memory it needs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.trt.bindings import pin_shapes
from vexpress_trt.engines.trt.builder import is_attention, shared_log, started
from vexpress_trt.engines.trt.flavour import TensorRt
from vexpress_trt.engines.trt.parsing import parsed
from vexpress_trt.engines.trt.profile import Profile

# Widths of a head that have a fused kernel in 16 bits, and how often an attention without one holds its scores: tried
# with TensorRT-RTX 1.7 for widths from 4 to 512, in all three precisions.
_FUSED_WIDTHS = range(16, 257, 8)
_COPIES_OF_SCORES, _WIDTH_OF_ONE_COPY = 2, 4


@dataclass(frozen=True)
class Need:
    """Bytes of working memory, `what` of the graph needs them, and a remedy that is special to it, or ""."""

    size: int
    what: str
    remedy: str = ""


def least_working_memory(tensorrt: TensorRt, spec: GraphSpec, path: Path, profile: Profile) -> Need:
    """What one step of the engine needs beside its inputs, outputs and weights, at its largest sizes.

    Only what cannot be fused is counted: the result of a convolution, and an attention's scores where it has no fused
    kernel; in TensorRT 10.12 and 10.13 no scores, since it is not known which attentions they fuse. Takes a second at
    most, since weights are not read. Raises UserError where the graph cannot be read or is not what the manifest says.
    """
    trt = tensorrt.module
    log = shared_log(trt)
    log.lines.clear()
    network = parsed(tensorrt, started(tensorrt, trt.Builder, log), log, spec, path)
    pin_shapes(trt, network, spec, profile.at_largest())
    outputs = {network.get_output(index).name for index in range(network.num_outputs)}
    needs = [Need(0, "nothing")]
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if is_attention(trt, layer):
            needs.append(_scores(trt, layer))
        elif layer.type == trt.LayerType.CONVOLUTION:
            tensor = layer.get_output(0)
            if tensor.name not in outputs:
                needs.append(Need(_size(trt, tensor.dtype, tensor.shape), "the result of a convolution"))
    return max(needs, key=lambda need: need.size)


def _scores(trt: Any, layer: Any) -> Need:
    """Those that an attention holds: queries [batch, heads, tokens, width of a head], keys alike."""
    tensor = layer.get_input(0)
    batch, heads, queries, width = tensor.shape
    fused = tensor.dtype != trt.DataType.FLOAT and width in _FUSED_WIDTHS
    copies = 0 if fused else 1 if width <= _WIDTH_OF_ONE_COPY else _COPIES_OF_SCORES
    scores = _size(trt, tensor.dtype, (batch, heads, queries, layer.get_input(1).shape[2]))
    kind, remedy = f"{width} channels per head", ""
    if tensor.dtype == trt.DataType.FLOAT:
        kind, remedy = "FP32", "use --precision fp16"
    return Need(copies * scores, f"an attention that has no fused kernel for {kind}", remedy)


def _size(trt: Any, dtype: Any, shape: Iterable[int]) -> int:
    """Bytes of a tensor of floating-point numbers; 0 where its size depends on values."""
    sizes = tuple(shape)
    return (4 if dtype == trt.DataType.FLOAT else 2) * math.prod(sizes) if min(sizes, default=1) >= 0 else 0
