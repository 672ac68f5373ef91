"""Sizes that engines were built for and sizes that are wanted, in the words of `vexpress build`'s flags."""

from collections.abc import Mapping
from dataclasses import dataclass

from vexpress_trt.engines.manifest import ModelConfig
from vexpress_trt.engines.trt.profile import Profile, Range

_FLAGS = {"w": "--image_width", "h": "--image_height", "F": "--context_frames", "B": "--window_batch"}


@dataclass(frozen=True)
class SizeWords:
    """Says sizes of symbols for a model."""

    model: ModelConfig

    def difference(self, profile: Profile, sizes: Mapping[str, int]) -> str:
        """Why an engine of this profile does not run with symbols of these sizes, or ""."""
        others = outside(profile, sizes)
        named = [self._difference(symbol, profile.ranges[symbol], sizes[symbol]) for symbol in others]
        return f"it is for {' and '.join(named)}" if named else ""

    def flags(self, sizes: Mapping[str, int]) -> list[str]:
        """What a build for these sizes is given, where they are not the bundle's own."""
        model = self.model
        usual = {
            "w": model.image_width // model.vae_scale_factor,
            "h": model.image_height // model.vae_scale_factor,
            "F": model.context_frames,
            "B": 1,
        }
        others = [symbol for symbol in _FLAGS if sizes.get(symbol, usual[symbol]) != usual[symbol]]
        return [word for symbol in others for word in (_FLAGS[symbol], str(sizes[symbol] * self._unit(symbol)))]

    def _difference(self, symbol: str, own: Range, wanted: int) -> str:
        if symbol == "S":
            rate = self.model.audio_sample_rate
            return f"{own.smallest / rate:g} to {own.largest / rate:g} s of speech at once, not {wanted / rate:g}"
        unit = self._unit(symbol)
        ends = dict.fromkeys(str(size * unit) for size in (own.smallest, own.largest))
        return f"{_FLAGS.get(symbol, symbol)} {' to '.join(ends)}, not {wanted * unit}"

    def _unit(self, symbol: str) -> int:
        return self.model.vae_scale_factor if symbol in ("h", "w") else 1


def outside(profile: Profile, sizes: Mapping[str, int]) -> list[str]:
    """The symbols whose sizes an engine of this profile does not take; those without a size are passed over."""
    return [
        symbol
        for symbol, own in profile.ranges.items()
        if symbol in sizes and not own.smallest <= sizes[symbol] <= own.largest
    ]
