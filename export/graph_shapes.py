"""Shapes of a bundle's tensors as expressions of the sizes h, w (latent) and S (samples)."""

from collections.abc import Iterator, Mapping
from typing import Any

from vexpress_trt.engines.audio_geometry import AudioGeometry
from vexpress_trt.export.nets.configs import Stage, UNetConfig

Shape = tuple[int | str, ...]


def key_value_shapes(config: UNetConfig) -> list[Shape]:
    """[1, heads, tokens, channels of a head] of the keys, and of the values, of every attention to the reference, in
    the denoiser's execution order."""
    return [(1, stage.heads, tokens, stage.channels // stage.heads) for stage, tokens in _attentions(config)]


def tap_shapes(config: UNetConfig) -> list[Shape]:
    """[1, tokens, channels] of what the reference network writes for each of these attentions."""
    return [(1, tokens, stage.channels) for stage, tokens in _attentions(config)]


def _attentions(config: UNetConfig) -> Iterator[tuple[Stage, str]]:
    stages = config.stages()
    deepest = len(config.block_out_channels) - 1
    for position, stage in enumerate(stages):
        # Blocks go down, once through the middle, and up again: the level mirrors around the middle.
        level = min(position, deepest, len(stages) - 1 - position)
        for _ in range(stage.attentions):
            yield stage, tokens_of_level(level)


def tokens_of_level(level: int) -> str:
    """The number of pixels after `level` halvings, each rounded up, of an h x w latent."""
    if level == 0:
        return "h*w"
    factor = 2**level
    return f"((h + {factor - 1})//{factor})*((w + {factor - 1})//{factor})"


def audio_rows(config: Mapping[str, Any]) -> str:
    """The number of rows wav2vec 2.0's strided convolutions make of S samples (400 in, 320 apart for the base model).

    Each convolution takes n to (n - kernel) // stride + 1; such floors combine into one.
    """
    geometry = AudioGeometry.of(config)
    difference = geometry.reach - geometry.step
    return f"(S - {difference})//{geometry.step}" if difference >= 0 else f"(S + {-difference})//{geometry.step}"
