"""Shape profiles: the sizes that an engine is built for, one minimum, optimum and maximum for every symbol."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

from vexpress_trt.engines.call_sizes import (
    CHUNK,
    MAX_SIDE,
    MAX_WINDOW_BATCH,
    MIN_SIDE,
    WHOLE_AUDIO_SECONDS,
    frames_per_call,
)
from vexpress_trt.engines.dims import evaluate, symbols
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec, ModelConfig
from vexpress_trt.engines.trt.size_flags import SHORTEST_AUDIO_SECONDS, SIZE_FLAGS, Range

Kind = Literal["static", "dynamic"]

_RANGE = re.compile(r"([A-Za-z]+)(\d+(?:-\d+-\d+)?)")


@dataclass(frozen=True)
class Profile:
    """The sizes of every symbol of a graph; `name` is part of the engine's key."""

    name: str
    ranges: Mapping[str, Range]

    def shapes(self, dimensions: tuple[int | str, ...]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(smallest, best, largest) shape of a tensor with these dimensions."""
        smallest, best, largest = (
            tuple(evaluate(dimension, {symbol: getattr(sizes, which) for symbol, sizes in self.ranges.items()})
                  for dimension in dimensions)
            for which in ("smallest", "best", "largest")
        )  # fmt: skip
        return smallest, best, largest

    @classmethod
    def parse(cls, name: str) -> "Profile":
        """The profile of this name, or one without symbols. Raises ValueError for what is no name of a profile."""
        ranges = {}
        for part in name.split("_") if name != "fixed" else ():
            found = _RANGE.fullmatch(part)
            if found is None:
                raise ValueError(f"{name!r} is not the name of a profile")
            sizes = [int(size) for size in found[2].split("-")]
            ranges[found[1]] = Range(*sizes) if len(sizes) == 3 else Range.fixed(sizes[0])
        return cls(name, ranges)

    def at_largest(self) -> "Profile":
        """The profile of its largest sizes alone."""
        return Profile(self.name, {symbol: Range.fixed(own.largest) for symbol, own in self.ranges.items()})

    @property
    def spread(self) -> float:
        """How far the sizes range: 1 where all are fixed, 2 where one of them may double."""
        return prod(own.largest / own.smallest for own in self.ranges.values())

    def takes(self, sizes: Mapping[str, int]) -> bool:
        """Whether an engine of this profile runs with symbols of these sizes."""
        return all(symbol in sizes and own.takes(sizes[symbol]) for symbol, own in self.ranges.items())

    def size(self, dimension: int | str) -> int | None:
        """The only size that a dimension has in this profile; None where it has a range."""
        used = {} if isinstance(dimension, int) else {symbol: self.ranges[symbol] for symbol in symbols(dimension)}
        if not all(sizes.is_fixed for sizes in used.values()):
            return None
        return evaluate(dimension, {symbol: sizes.best for symbol, sizes in used.items()})


@dataclass(frozen=True)
class ProfileSettings:
    """What the engines of a bundle shall take, in pixels, frames, windows and seconds; None is the bundle's default.

    A static profile has one size for everything but the length of the audio. A dynamic one has ranges; a single number
    in it stands for images and windows from half of it up to it, and for 1 to `window_batch` windows per call. Of
    `audio_seconds` a single number is the longest, in both.
    """

    kind: Kind = "static"
    image_width: int | Range[int] | None = None
    image_height: int | Range[int] | None = None
    context_frames: int | Range[int] | None = None
    window_batch: int | Range[int] = 1
    audio_seconds: float | Range[float] | None = None

    def check(self, model: ModelConfig) -> None:
        """Refuse sizes that no `vexpress generate` asks for. Raises UserError that names the flag and its bounds."""
        if problem := self.problem(model):
            raise UserError(problem)

    def problem(self, model: ModelConfig) -> str:
        """Why no engine can be built for this, with the flag and its bounds, or ""."""
        factor, longest = model.vae_scale_factor, model.max_context_frames
        side = f"a multiple of {factor} from {MIN_SIDE} to {MAX_SIDE}"
        seconds = f"from {SHORTEST_AUDIO_SECONDS:g} to {WHOLE_AUDIO_SECONDS:g}"
        bounds = {
            "w": (MIN_SIDE, MAX_SIDE, factor, side),
            "h": (MIN_SIDE, MAX_SIDE, factor, side),
            "F": (1, longest, 1, f"from 1 to {longest} for this model"),
            "B": (1, MAX_WINDOW_BATCH, 1, f"from 1 to {MAX_WINDOW_BATCH}"),
            "S": (SHORTEST_AUDIO_SECONDS, WHOLE_AUDIO_SECONDS, None, seconds),
        }
        problems = (self._problem(symbol, *within) for symbol, within in bounds.items())
        return next(filter(None, problems), "")

    def _problem(self, symbol: str, low: float, high: float, step: int | None, bounds: str) -> str:
        flag = SIZE_FLAGS[symbol]
        value = getattr(self, flag.name)
        if value is None:
            return ""
        said = f"--{flag.name} {flag.text(value)}"
        own = value if isinstance(value, Range) else Range.fixed(value)
        if not all(low <= size <= high and (step is None or size % step == 0) for size in own.parts):
            return f"{said}: must be {bounds}."
        if not own.smallest <= own.best <= own.largest:
            return f"{said}: MIN must not be above BEST, nor BEST above MAX (each {bounds})."
        if symbol == "S" and self._seconds.is_fixed:
            return f"{said}: speech has no fixed length, MAX must be more than MIN (each {bounds})."
        if symbol != "S" and isinstance(value, Range) and self.kind == "static":
            return f"{said}: a range needs --profile dynamic; a static one has one size ({bounds})."
        return ""

    def of(self, spec: GraphSpec, model: ModelConfig) -> Profile:
        """The profile of one graph."""
        ranges = self.ranges(spec.name, model)
        own = {symbol: ranges[symbol] for symbol in symbols_of(spec)}
        name = "_".join(f"{symbol}{_text(sizes)}" for symbol, sizes in own.items()) or "fixed"
        return Profile(name, own)

    def ranges(self, graph: str, model: ModelConfig) -> dict[str, Range[int]]:
        """The sizes of every symbol, of those that the graph does not have as well."""
        factor, rate, chunk = model.vae_scale_factor, model.audio_sample_rate, frames_per_call(graph)
        return {
            "w": self._range(model.image_width if self.image_width is None else self.image_width, factor),
            "h": self._range(model.image_height if self.image_height is None else self.image_height, factor),
            "F": self._range(model.context_frames if self.context_frames is None else self.context_frames),
            "B": self._range(self.window_batch, from_one=True),
            "N": Range.fixed(chunk) if self.kind == "static" else Range(1, chunk, CHUNK),
            "S": Range(*(round(seconds * rate) for seconds in self._seconds.parts)),
        }

    def _range(self, value: int | Range[int], unit: int = 1, *, from_one: bool = False) -> Range[int]:
        if isinstance(value, Range):
            return Range(*(size // unit for size in value.parts))
        size = value // unit
        if self.kind == "static":
            return Range.fixed(size)
        return Range(1, 1, size) if from_one else Range(max(1, size // 2), size, size)

    @property
    def _seconds(self) -> Range[float]:
        value = WHOLE_AUDIO_SECONDS if self.audio_seconds is None else self.audio_seconds
        if isinstance(value, Range):
            return value
        return Range(SHORTEST_AUDIO_SECONDS, SIZE_FLAGS["S"].usual(SHORTEST_AUDIO_SECONDS, value), value)


def symbols_of(spec: GraphSpec) -> list[str]:
    """The symbols in the sizes of a graph's inputs, sorted."""
    named = (d for tensor in spec.inputs for d in tensor.shape if isinstance(d, str))
    return sorted(set().union(*map(symbols, named)))


def _text(sizes: Range[int]) -> str:
    return str(sizes.best) if sizes.is_fixed else "-".join(map(str, sizes.parts))
