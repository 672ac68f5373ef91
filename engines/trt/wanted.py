"""Sizes that engines were built for and sizes that are wanted, in the words of `vexpress build`'s flags."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from vexpress_trt.engines.call_sizes import MIN_SIDE
from vexpress_trt.engines.manifest import GraphSpec, ModelConfig
from vexpress_trt.engines.trt.profile import Profile, ProfileSettings
from vexpress_trt.engines.trt.size_flags import SIZE_FLAGS, Range

_NO_SIZES: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class SizeWords:
    """Says sizes of symbols for a model."""

    model: ModelConfig

    def difference(self, profile: Profile, sizes: Mapping[str, int]) -> str:
        """Why an engine of this profile does not run with symbols of these sizes, or ""."""
        others = outside(profile, sizes)
        named = [self._difference(symbol, profile.ranges[symbol], sizes[symbol]) for symbol in others]
        return f"it is for {' and '.join(named)}" if named else ""

    def settings_for(self, spec: GraphSpec, sizes: Mapping[str, int]) -> ProfileSettings | None:
        """What a build is told whose engine of this graph runs with symbols of these sizes; None where none does.

        A static one where that will do: it is faster. Sizes of other graphs' symbols are told as well.
        """
        told = {}
        for symbol in (SIZE_FLAGS.keys() & sizes.keys()) - {"S"}:
            name = SIZE_FLAGS[symbol].name
            if sizes[symbol] * self._unit(symbol) != getattr(self.model, name, 1):
                told[name] = self._told(symbol, sizes[symbol])
        for settings in (ProfileSettings("static", **told), ProfileSettings("dynamic", **told)):
            if not settings.problem(self.model) and not outside(settings.of(spec, self.model), sizes):
                return settings
        return None

    def settings_of(self, graph: str, profile: Profile, sizes: Mapping[str, int] = _NO_SIZES) -> ProfileSettings:
        """What a build was told that made this profile of a graph, as far as the profile tells: it makes it again.

        Symbols that only other graphs have take these `sizes` at least.
        """
        ranges = profile.ranges
        ranged = any(not own.is_fixed for symbol, own in ranges.items() if symbol != "S")
        settings = ProfileSettings("dynamic" if ranged else "static")
        for symbol in SIZE_FLAGS.keys() & ranges.keys():
            flag, unit = SIZE_FLAGS[symbol], self._unit(symbol)
            told = Range(*(size * unit for size in ranges[symbol].parts))
            for value in (getattr(settings, flag.name), told.largest, told):
                settings = replace(settings, **{flag.name: value})
                if settings.ranges(graph, self.model)[symbol] == ranges[symbol]:
                    break
        for symbol in (SIZE_FLAGS.keys() & sizes.keys()) - ranges.keys() - {"S"}:
            if not settings.ranges(graph, self.model)[symbol].takes(sizes[symbol]):
                settings = replace(settings, **{SIZE_FLAGS[symbol].name: self._told(symbol, sizes[symbol])})
        return settings

    def flags(self, settings: ProfileSettings) -> list[str]:
        """The words of a command that builds this, without what is the default."""
        words = ["--profile", settings.kind] if settings.kind != "static" else []
        usual = ProfileSettings()
        for flag in SIZE_FLAGS.values():
            value = getattr(settings, flag.name)
            if value != getattr(usual, flag.name):
                words += [f"--{flag.name}", flag.text(value)]
        return words

    def _difference(self, symbol: str, own: Range[int], wanted: int) -> str:
        if symbol == "S":
            rate = self.model.audio_sample_rate
            return f"{own.smallest / rate:g} to {own.largest / rate:g} s of speech at once, not {wanted / rate:g}"
        unit = self._unit(symbol)
        ends = dict.fromkeys(str(size * unit) for size in (own.smallest, own.largest))
        name = f"--{SIZE_FLAGS[symbol].name}" if symbol in SIZE_FLAGS else symbol
        return f"{name} {' to '.join(ends)}, not {wanted * unit}"

    def _told(self, symbol: str, size: int) -> int:
        """What a flag says for this size of its symbol."""
        told = size * self._unit(symbol)
        return max(told, MIN_SIDE) if symbol in ("h", "w") else told

    def _unit(self, symbol: str) -> float:
        """What a flag counts, for one of the symbol."""
        if symbol == "S":
            return 1 / self.model.audio_sample_rate
        return self.model.vae_scale_factor if symbol in ("h", "w") else 1


def outside(profile: Profile, sizes: Mapping[str, int]) -> list[str]:
    """The symbols whose sizes an engine of this profile does not take; those without a size are passed over."""
    return [symbol for symbol, own in profile.ranges.items() if symbol in sizes and not own.takes(sizes[symbol])]
