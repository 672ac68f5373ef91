"""Resnets, spatial transformers and motion modules on rows. Each begins with a norm and ends with an open addition."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from vexpress_trt.export.nets.blocks import Attention, FeedForward, ResnetBlock, SpatialTransformer
from vexpress_trt.export.nets.fused import operations
from vexpress_trt.export.nets.fused.hidden import Hidden, as_images, as_rows, convolve
from vexpress_trt.export.nets.fused.weights import after_bias, channels_last, frozen, pointwise, side_by_side
from vexpress_trt.export.nets.motion import MotionModule


class FusedResnet(nn.Module):
    """Its convolutions have no bias: the first one's is in the time projection, the second's in the residual sum."""

    def __init__(self, resnet: ResnetBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = resnet.norm1, resnet.norm2
        self.conv1, self.conv2 = channels_last(resnet.conv1), channels_last(resnet.conv2)
        short = resnet.conv_shortcut
        self.shortcut = None if short is None else pointwise(short, bias=False)
        self.shift = frozen(self.conv2.bias if short is None else self.conv2.bias + short.bias)

    def forward(self, hidden: Hidden, shift: Tensor, skip: Tensor | None = None) -> Hidden:
        """shift: [N, Cout], the time projection and the first convolution's bias. `skip`, a skip connection's rows,
        become the last channels of `hidden`."""
        normed = hidden.normed(self.norm1, silu=True, beside=skip)
        residual = hidden.rows if self.shortcut is None else self.shortcut(hidden.rows)
        branch = as_rows(convolve(self.conv1, as_images(normed, hidden.size), bias=False))
        norm = self.norm2
        normed = operations.group_norm(
            branch, norm.num_groups, norm.weight, norm.bias, norm.eps, shift=shift, silu=True
        )
        branch = as_rows(convolve(self.conv2, as_images(normed, hidden.size), bias=False))
        return Hidden(residual, hidden.size, branch, self.shift)


class FusedFeedForward(nn.Module):
    """Adds its result to the residual stream in the last product itself, except for its bias, which is left out."""

    def __init__(self, layer: FeedForward) -> None:
        super().__init__()
        self.entry, self.exit = layer.net[0].proj, layer.net[2]

    def forward(self, tokens: Tensor, normed: Tensor) -> Tensor:
        """tokens: [N, T, C], which is overwritten; normed: [N, T, C]."""
        gated = operations.gated_gelu(self.entry(normed))
        tokens.view(-1, tokens.shape[-1]).addmm_(gated.view(-1, gated.shape[-1]), self.exit.weight.t())
        return tokens


@dataclass(frozen=True)
class Read:
    """What a spatial transformer reads besides the hidden state; weights are [1]."""

    tokens: Tensor  # audio tokens [B*F, 5, C] of the conditional half
    reference_weight: Tensor
    audio_weight: Tensor
    key: Tensor  # of the portrait, [1, heads, S, C/heads]
    value: Tensor


class FusedTransformer(nn.Module):
    """`SpatialTransformer` around a `ReadingBlock`.

    Both halves of a guided call lie in the same tensors, which the sums and norms overwrite.
    """

    def __init__(self, transformer: SpatialTransformer, *, guided: bool) -> None:
        super().__init__()
        (block,) = transformer.transformer_blocks
        self.guided, self.heads = guided, block.attn1.heads
        self.norm, self.proj_in = transformer.norm, pointwise(transformer.proj_in)
        self.norm1, self.norm1_5, self.norm2, self.norm3 = block.norm1, block.norm1_5, block.norm2, block.norm3
        self.self_qkv, self.self_out = _projection(block.attn1), block.attn1.to_out[0]
        self.reference_q, self.reference_out = block.attn1_5.to_q, block.attn1_5.to_out[0]
        self.audio_q, self.audio_out = block.attn2.to_q, block.attn2.to_out[0]
        self.audio_kv = side_by_side([block.attn2.to_k, block.attn2.to_v])
        self.ff = FusedFeedForward(block.ff)
        self.proj_out = after_bias(pointwise(transformer.proj_out), self.ff.exit.bias)

    def forward(self, hidden: Hidden, read: Read) -> Hidden:
        tokens = self.proj_in(hidden.normed(self.norm, silu=False))
        normed = operations.layer_norm(tokens, *_layer_norm(self.norm1))
        self._attend(tokens, normed, read)
        return Hidden(hidden.rows, hidden.size, self.proj_out(self.ff(tokens, normed)))

    def _attend(self, tokens: Tensor, normed: Tensor, read: Read) -> None:
        """All attentions: afterwards `tokens` holds the residual stream and `normed` what the feed-forward reads."""
        query, key, value = (_heads(part, self.heads) for part in self.self_qkv(normed).chunk(3, dim=-1))
        rows = (tokens, self.self_out(_attention(query, key, value)), normed)
        if self.guided:
            unconditional, rows = zip(*(both.chunk(2) for both in rows), strict=True)
            self._without_conditions(*unconditional, read)
        self._with_conditions(*rows, read)

    def _without_conditions(self, tokens: Tensor, attended: Tensor, normed: Tensor, read: Read) -> None:
        """Where the conditions are zero their attentions add what is left of them, a constant."""
        constant = self.reference_out.bias * read.reference_weight + self.audio_out.bias * read.audio_weight
        operations.add_layer_norm(tokens, attended, *_layer_norm(self.norm3), shift=constant, out=(tokens, normed))

    def _with_conditions(self, tokens: Tensor, attended: Tensor, normed: Tensor, read: Read) -> None:
        out = tokens, normed
        operations.add_layer_norm(tokens, attended, *_layer_norm(self.norm1_5), out=out)
        # Frames are folded into the query axis, so that keys and values need no copy per frame.
        query = _heads(self.reference_q(normed).flatten(0, 1)[None], self.heads)
        attended = self.reference_out(_attention(query, read.key, read.value)).view(tokens.shape)
        operations.add_layer_norm(tokens, attended, *_layer_norm(self.norm2), scale=read.reference_weight, out=out)
        key, value = (_heads(part, self.heads) for part in self.audio_kv(read.tokens).chunk(2, dim=-1))
        attended = self.audio_out(_attention(_heads(self.audio_q(normed), self.heads), key, value))
        operations.add_layer_norm(tokens, attended, *_layer_norm(self.norm3), scale=read.audio_weight, out=out)


class FusedMotion(nn.Module):
    """`MotionModule` without a transposition: all but its attention works on rows in any order."""

    def __init__(self, motion: MotionModule) -> None:
        super().__init__()
        transformer = motion.temporal_transformer
        (block,) = transformer.transformer_blocks
        self.heads = block.attention_blocks[0].heads
        self.norm, self.proj_in = transformer.norm, transformer.proj_in
        self.norms = nn.ModuleList([*block.norms, block.ff_norm])
        self.positions = nn.ModuleList(attention.pos_encoder for attention in block.attention_blocks)
        self.qkv = nn.ModuleList(_projection(attention) for attention in block.attention_blocks)
        self.out = nn.ModuleList(attention.to_out[0] for attention in block.attention_blocks)
        self.ff = FusedFeedForward(block.ff)
        self.proj_out = after_bias(transformer.proj_out, self.ff.exit.bias)

    def forward(self, hidden: Hidden, frames: int) -> Hidden:
        """Rows [N*F, T, C] with F = `frames` consecutive frames of each of N windows."""
        tokens = self.proj_in(hidden.normed(self.norm, silu=False))
        positions = [table.pe[0, :frames] for table in self.positions]
        normed = operations.layer_norm(tokens, *_layer_norm(self.norms[0]), positions=positions[0])
        following = zip(self.norms[1:], [*positions[1:], None], strict=True)
        for qkv, out, (norm, places) in zip(self.qkv, self.out, following, strict=True):
            attended = out(operations.temporal_attention(qkv(normed), self.heads, frames))
            operations.add_layer_norm(tokens, attended, *_layer_norm(norm), positions=places, out=(tokens, normed))
        return Hidden(hidden.rows, hidden.size, self.proj_out(self.ff(tokens, normed)))


def _projection(attention: Attention) -> nn.Linear:
    """Query, key and value of a self attention in one product."""
    return side_by_side([attention.to_q, attention.to_k, attention.to_v])


def _layer_norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps


def _heads(tokens: Tensor, heads: int) -> Tensor:
    """[N, T, C] -> [N, heads, T, C/heads], a view."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[N, heads, T, D] -> [N, T, heads*D]; a view of what torch's fused attention writes."""
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
