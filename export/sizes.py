"""Sizes of the networks read off their weights, even where single weights are missing.

The tensors that tell a size may be the very ones a damaged file lacks. Their shapes are then taken from neighbours, so
that the comparison that follows can list everything that is missing, these tensors included.
"""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from vexpress_trt.engines.errors import UserError
from vexpress_trt.export.nets.configs import GuiderConfig, MotionConfig, ProjectionConfig

Shape = tuple[int, ...]
Config = TypeVar("Config")


def motion_config(shapes: Mapping[str, Shape]) -> MotionConfig | str:
    """The motion module's sizes, or the sentence why they cannot be read."""
    return _read(MotionConfig.from_shapes, shapes)


def guider_config(shapes: Mapping[str, Shape]) -> GuiderConfig | str:
    """The key-point guider's sizes, or the sentence why they cannot be read."""
    known = dict(shapes)
    for name, shape in shapes.items():
        weight = name.removesuffix(".bias") + ".weight"
        if name.endswith(".bias") and weight not in shapes:
            known[weight] = (shape[0], 3, 3, 3)  # the guider's input is RGB; other inputs are not read
    return _read(GuiderConfig.from_shapes, known)


def projection_config(shapes: Mapping[str, Shape]) -> ProjectionConfig | str:
    """The audio projection's sizes, or the sentence why they cannot be read."""
    return _read(lambda stored: ProjectionConfig.from_shapes(_with_neighbours(stored)), shapes)


def _with_neighbours(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """An audio projection's shapes with those that tell its sizes, taken from neighbours where they are missing."""
    known = dict(shapes)
    default = ProjectionConfig()
    dim = _first(shapes, r"proj_in\.bias|layers\.\d+\.0\.norm1\.weight", (default.dim,))[0]
    embedding = _first(shapes, r"proj_in\.weight", (dim, default.embedding_dim))[1]
    known.setdefault("latents", (1, default.queries, dim))
    known.setdefault("pos_emb.weight", (default.max_seq_len, embedding))
    known.setdefault("proj_out.weight", _first(shapes, r"proj_out\.bias|norm_out\.\w+", (default.output_dim,)))
    for last in ("0.to_q", "1.1"):
        neighbour = _first(shapes, rf"layers\.\d+\.{re.escape(last)}\.weight", ())
        if neighbour:
            known.setdefault(f"layers.0.{last}.weight", neighbour)
    return known


def _first(shapes: Mapping[str, Shape], pattern: str, default: Shape) -> Shape:
    return next((shape for name, shape in shapes.items() if re.fullmatch(pattern, name)), default)


def _read(reader: Callable[[Mapping[str, Shape]], Config], shapes: Mapping[str, Shape]) -> Config | str:
    try:
        return reader(shapes)
    except UserError as problem:
        return str(problem)
    except (ValueError, IndexError, ZeroDivisionError):
        return "its tensors have shapes that no V-Express network has"
