"""The stage `curves`: what the stages of a training measured, as a picture."""

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from vexpress_trt.engines.files import atomic_path

_DOTS_PER_INCH = 110
_PANELS = (("vae", "psnr", "held-out PSNR of the autoencoder, dB"), ("spatial", "test", ""), ("motion", "test", ""))
_ERROR = "held-out error of v-prediction"


def draw_curves(curves: Sequence[Path], target: Path) -> None:
    """Draws curves (`curve.jsonl`), each going on where the one before it ended, to the PNG file `target`."""
    from matplotlib.figure import Figure

    runs = [[json.loads(line) for line in curve.read_text(encoding="utf-8").splitlines()] for curve in curves]
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    axes = figure.subplots(1, len(_PANELS))
    for axis, (stage, measured, label) in zip(axes, _PANELS, strict=True):
        trained, tested = (
            [_of(lines, stage, name, began) for lines, began in zip(runs, _begun(runs, stage), strict=True)]
            for name in ("loss", measured)
        )
        for points in trained:
            axis.plot(*points, color="tab:gray", linewidth=0.8)
        right = axis.twinx() if measured == "psnr" else axis
        for points in tested:
            right.plot(*points, "o-", color="tab:blue", markersize=3)
        axis.set(title=stage, xlabel="step", yscale="log")
        right.set_ylabel(label or _ERROR, color="tab:blue")
    axes[0].set_ylabel("loss while training", color="tab:gray")
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=_DOTS_PER_INCH, format="png")


def _begun(runs: list[list[dict]], stage: str) -> list[int]:
    """The step after which each run's lines count: those before are of stages that were only looked at again."""
    last = [max((line["step"] for line in lines if line["stage"] == stage), default=0) for lines in runs]
    return [0, *accumulate(last, max)][: len(runs)]


def _of(lines: list[dict], stage: str, name: str, began: int) -> tuple[list[int], list[float]]:
    chosen = [line for line in lines if line["stage"] == stage and name in line and line["step"] > began]
    return [line["step"] for line in chosen], [line[name] for line in chosen]
