"""Named trade-offs between speed and the original's result: what `--preset` sets where a flag is not given.

This module imports nothing heavy, as `request` does not.
"""

from dataclasses import dataclass

DEFAULT_PRESET, DEMO_PRESET = "exact", "fast"


@dataclass(frozen=True)
class Preset:
    """Values for the request's fields of the same names; the defaults are the original's."""

    num_inference_steps: int = 25
    solver: str = "ddim"
    guidance_scale: float = 3.5
    guidance_interval: str | None = None
    context_overlap: int = 4


# What each is worth: bench/results/quality_table.json, made by `vexpress bench quality --table`.
PRESETS = {
    "exact": Preset(),
    "fast": Preset(num_inference_steps=5),
    "realtime": Preset(num_inference_steps=4, guidance_interval="0.2,0.8", context_overlap=2),
}
