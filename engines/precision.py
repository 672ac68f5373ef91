"""The precisions that a bundle may have its graphs in."""

from typing import Literal, get_args

Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
