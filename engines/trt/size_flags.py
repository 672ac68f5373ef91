"""The flags of `vexpress build` that say sizes: one number, or a range as MIN-MAX or MIN-BEST-MAX."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

from vexpress_trt.engines.call_sizes import MAX_SIDE, MAX_WINDOW_BATCH, MIN_SIDE, WHOLE_AUDIO_SECONDS

SHORTEST_AUDIO_SECONDS, TYPICAL_AUDIO_SECONDS = 0.05, 8.0
Number = TypeVar("Number", int, float)
_WHOLE, _DECIMAL = re.compile(r"[0-9]{1,9}"), re.compile(r"[0-9]{1,9}(\.[0-9]{1,15})?")


@dataclass(frozen=True)
class Range(Generic[Number]):
    """Sizes of a symbol, or of what a flag counts: the smallest, the one to optimise for, the largest."""

    smallest: Number
    best: Number
    largest: Number

    @classmethod
    def fixed(cls, size: Number) -> "Range[Number]":
        return cls(size, size, size)

    @property
    def is_fixed(self) -> bool:
        return self.smallest == self.largest

    @property
    def parts(self) -> tuple[Number, Number, Number]:
        return self.smallest, self.best, self.largest

    def takes(self, size: Number) -> bool:
        return self.smallest <= size <= self.largest


@dataclass(frozen=True)
class SizeFlag:
    """A flag that sizes are given with.

    `number` is their type, `usual(MIN, MAX)` is BEST where it is left out, `accepts` says what one of them may be, as
    far as it is known without a model.
    """

    name: str
    number: type[int] | type[float]
    usual: Callable[[Number, Number], Number]
    accepts: str

    def parse(self, text: str) -> Number | Range[Number]:
        """What a user wrote; bounds are not looked at. Raises ValueError that says what is taken."""
        parts = text.split("-")
        pattern = _WHOLE if self.number is int else _DECIMAL
        if len(parts) > 3 or not all(map(pattern.fullmatch, parts)):
            raise ValueError(f"{text!r}: {self.accepts}, or a range as MIN-MAX or MIN-BEST-MAX")
        numbers = [self.number(part) for part in parts]
        if len(numbers) == 1:
            return numbers[0]
        smallest, *best, largest = numbers
        return Range(smallest, best[0] if best else self.usual(smallest, largest), largest)

    def text(self, value: Number | Range[Number]) -> str:
        """What `parse` reads as this value."""
        parts = value.parts if isinstance(value, Range) else (value,)
        if len(parts) == 3 and parts[1] == self.usual(parts[0], parts[2]):
            parts = (parts[0], parts[2])
        return "-".join(f"{part:.15g}" for part in parts)


def _largest(smallest: int, largest: int) -> int:
    return largest


def _smallest(smallest: int, largest: int) -> int:
    return smallest


def _typical(smallest: float, largest: float) -> float:
    return min(max(TYPICAL_AUDIO_SECONDS, smallest), largest)


_SECONDS = f"seconds from {SHORTEST_AUDIO_SECONDS:g} to {WHOLE_AUDIO_SECONDS:g}"
_SIDE = f"a multiple of 8 from {MIN_SIDE} to {MAX_SIDE}"

SIZE_FLAGS = {  # by the symbol whose sizes they say
    "w": SizeFlag("image_width", int, _largest, _SIDE),
    "h": SizeFlag("image_height", int, _largest, _SIDE),
    "F": SizeFlag("context_frames", int, _largest, "a number from 1 to the model's longest window"),
    "B": SizeFlag("window_batch", int, _smallest, f"a number from 1 to {MAX_WINDOW_BATCH}"),
    "S": SizeFlag("audio_seconds", float, _typical, _SECONDS),
}


def smaller(symbols: Collection[str]) -> str:
    """What a graph with sizes of these symbols can be built for that needs less, or ""."""
    named = {
        "h": "a smaller image",
        "F": "fewer --context_frames",
        "B": "a smaller --window_batch",
        "S": "less speech at once (--audio_seconds)",
    }
    words = " or ".join(words for symbol, words in named.items() if symbol in symbols)
    return f"build for {words}" if words else ""
