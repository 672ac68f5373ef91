"""Shape profiles: the sizes that an engine is built for, one minimum, optimum and maximum for every symbol."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vexpress_trt.engines.call_sizes import CHUNK, WHOLE_AUDIO_SECONDS, frames_per_call
from vexpress_trt.engines.dims import evaluate, symbols
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec, ModelConfig

Kind = Literal["static", "dynamic"]

_RANGE = re.compile(r"([A-Za-z]+)(\d+(?:-\d+-\d+)?)")
TYPICAL_AUDIO_SECONDS = 8
MIN_SIDE, MAX_SIDE = 64, 2048  # pixels of an image that a request may ask for
MAX_WINDOW_BATCH = 64


@dataclass(frozen=True)
class Range:
    """Sizes of a symbol: the smallest, the one to optimise for, the largest."""

    smallest: int
    best: int
    largest: int

    @classmethod
    def fixed(cls, size: int) -> "Range":
        return cls(size, size, size)


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

    def takes(self, sizes: Mapping[str, int]) -> bool:
        """Whether an engine of this profile runs with symbols of these sizes."""
        return all(
            symbol in sizes and own.smallest <= sizes[symbol] <= own.largest for symbol, own in self.ranges.items()
        )

    def size(self, dimension: int | str) -> int | None:
        """The only size that a dimension has in this profile; None where it has a range."""
        used = {} if isinstance(dimension, int) else {symbol: self.ranges[symbol] for symbol in symbols(dimension)}
        if any(sizes.smallest != sizes.largest for sizes in used.values()):
            return None
        return evaluate(dimension, {symbol: sizes.best for symbol, sizes in used.items()})


@dataclass(frozen=True)
class ProfileSettings:
    """What the engines of a bundle shall take; None is the bundle's default.

    A static profile has one size for everything but the length of the audio; a dynamic one takes images and windows
    from half the default size up to it, and up to `window_batch` windows per call.
    """

    kind: Kind = "static"
    image_width: int | None = None
    image_height: int | None = None
    context_frames: int | None = None
    window_batch: int = 1

    def check(self, model: ModelConfig) -> None:
        """Refuse sizes that no `vexpress generate` asks for. Raises UserError that names the flag and its bounds."""
        factor = model.vae_scale_factor
        for flag, side in (("image_width", self.image_width), ("image_height", self.image_height)):
            if side is not None and (side % factor or not MIN_SIDE <= side <= MAX_SIDE):
                raise UserError(f"--{flag} {side}: must be a multiple of {factor} from {MIN_SIDE} to {MAX_SIDE}.")
        if self.context_frames is not None and not 1 <= self.context_frames <= model.max_context_frames:
            raise UserError(
                f"--context_frames {self.context_frames}: this model takes 1 to {model.max_context_frames}."
            )
        if not 1 <= self.window_batch <= MAX_WINDOW_BATCH:
            raise UserError(f"--window_batch {self.window_batch}: must be from 1 to {MAX_WINDOW_BATCH}.")

    def of(self, spec: GraphSpec, model: ModelConfig) -> Profile:
        """The profile of one graph."""
        width = model.image_width if self.image_width is None else self.image_width
        height = model.image_height if self.image_height is None else self.image_height
        frames = model.context_frames if self.context_frames is None else self.context_frames
        factor, rate = model.vae_scale_factor, model.audio_sample_rate
        audio = Range(rate // 20, TYPICAL_AUDIO_SECONDS * rate, int(WHOLE_AUDIO_SECONDS * rate))
        chunk = frames_per_call(spec.name)
        sizes = {"h": height // factor, "w": width // factor, "F": frames, "B": self.window_batch, "N": chunk}
        ranges = {symbol: Range.fixed(size) for symbol, size in sizes.items()}
        if self.kind == "dynamic":
            for symbol in ("h", "w", "F"):
                ranges[symbol] = Range(max(1, sizes[symbol] // 2), sizes[symbol], sizes[symbol])
            ranges["B"] = Range(1, 1, self.window_batch)
            ranges["N"] = Range(1, chunk, CHUNK)
        ranges["S"] = audio
        named = (d for tensor in spec.inputs for d in tensor.shape if isinstance(d, str))
        used = set().union(*map(symbols, named))
        own = {symbol: ranges[symbol] for symbol in sorted(used)}
        name = "_".join(f"{symbol}{_text(sizes)}" for symbol, sizes in own.items()) or "fixed"
        return Profile(name, own)


def _text(sizes: Range) -> str:
    same = sizes.smallest == sizes.largest
    return str(sizes.best) if same else f"{sizes.smallest}-{sizes.best}-{sizes.largest}"
