"""The audio projection: a perceiver resampler from rows of audio features to a few tokens per frame."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexpress_trt.export.nets.blocks import merge_heads, split_heads
from vexpress_trt.export.nets.configs import ProjectionConfig
from vexpress_trt.export.nets.state import materialise


class PerceiverAttention(nn.Module):
    """Queries attend to the normed inputs followed by themselves, normed."""

    def __init__(self, dim: int, heads: int, dim_head: int):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, inputs: Tensor, queries: Tensor) -> Tensor:
        """inputs: [N, R, dim]; queries: [N, Q, dim] -> [N, Q, dim]."""
        inputs, queries = self.norm1(inputs), self.norm2(queries)
        key, value = self.to_kv(torch.cat([inputs, queries], dim=1)).chunk(2, dim=-1)
        query, key, value = (split_heads(tensor, self.heads) for tensor in (self.to_q(queries), key, value))
        return self.to_out(merge_heads(F.scaled_dot_product_attention(query, key, value)))


def _feed_forward(dim: int, mult: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim),
        nn.Linear(dim, dim * mult, bias=False),
        nn.GELU(),
        nn.Linear(dim * mult, dim, bias=False),
    )


class AudioProjection(nn.Module):
    """Adds a learned position to each row, then `depth` layers of attention and feed-forward on the queries."""

    def __init__(self, config: ProjectionConfig):
        super().__init__()
        self.pos_emb = nn.Embedding(config.max_seq_len, config.embedding_dim)
        self.latents = nn.Parameter(torch.randn(1, config.queries, config.dim) / config.dim**0.5)
        self.proj_in = nn.Linear(config.embedding_dim, config.dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(config.dim, config.heads, config.dim_head),
                    _feed_forward(config.dim, config.ff_mult),
                ]
            )
            for _ in range(config.depth)
        )
        self.proj_out = nn.Linear(config.dim, config.output_dim)
        self.norm_out = nn.LayerNorm(config.output_dim)

    def forward(self, windows: Tensor) -> Tensor:
        """windows: [N, R, D] audio features around each frame, R = max_seq_len -> tokens [N, Q, C]."""
        positions = self.pos_emb.weight
        inputs = self.proj_in(windows.to(positions.dtype) + positions)
        queries = self.latents.expand(windows.shape[0], -1, -1)
        for attention, feed_forward in self.layers:
            queries = queries + attention(inputs, queries)
            queries = queries + feed_forward(queries)
        return self.norm_out(self.proj_out(queries))

    @classmethod
    def from_state_dict(cls, config: ProjectionConfig, state: Mapping[str, Tensor]) -> "AudioProjection":
        """From the official audio_projection weights."""
        return materialise(lambda: cls(config), state)
