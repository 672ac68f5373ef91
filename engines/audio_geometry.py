"""How the audio encoder's convolutions cut sound into hidden states: known from its configuration alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any


@dataclass(frozen=True)
class AudioGeometry:
    """Hidden state i sees samples i * step to i * step + reach - 1 (400 and 320 for wav2vec 2.0's base model).

    `kernel` and `stride` are those of the first convolution.
    """

    kernel: int
    stride: int
    reach: int
    step: int

    @classmethod
    def of(cls, wav2vec2: Mapping[str, Any]) -> "AudioGeometry":
        """From the encoder's configuration."""
        kernels, strides = wav2vec2["conv_kernel"], wav2vec2["conv_stride"]
        reach = 1 + sum((kernel - 1) * prod(strides[:i]) for i, kernel in enumerate(kernels))
        return cls(kernels[0], strides[0], reach, prod(strides))

    def states(self, samples: int) -> int:
        """How many hidden states so many samples give."""
        return max(0, (samples - self.reach) // self.step + 1)

    def samples(self, first: int, last: int) -> tuple[int, int]:
        """The samples that hidden states `first` to `last - 1` see."""
        return first * self.step, (last - 1) * self.step + self.reach
