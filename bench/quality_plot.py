"""Quality as pictures: bars of the conditions, or what each setting of the table costs and gives."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vexpress_trt.bench.quality import QualityReport
from vexpress_trt.bench.quality_table import TableReport
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path

_SHOWN = {"mouth_correlation": "correlation of the mouth's opening", "psnr_db": "PSNR to the truth, dB"}
_DOTS_PER_INCH = 120


def check_plot(output: Path) -> None:
    """Refuse, before anything is measured, a picture that cannot be drawn: UserError where `output` is no .png or
    matplotlib is missing."""
    if output.suffix.lower() != ".png":
        raise UserError(f"--plot {output}: the picture is a PNG, let the name end in .png")
    if find_spec("matplotlib") is None:
        raise UserError("plots need matplotlib: install it with `pip install 'vexpress-trt[bench]'`")


def plot_quality(report: QualityReport | TableReport, output: Path) -> None:
    """Draw a report into the PNG `output`, which `check_plot` let pass."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(1, len(_SHOWN)), _SHOWN.items(), strict=True):
        (_bars if isinstance(report, QualityReport) else _costs)(axes, report, name)
        axes.set_xlabel(label) if isinstance(report, QualityReport) else axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{report.bundle}, {report.clips} held-out clips")
    with atomic_path(output) as temporary:
        figure.savefig(temporary, dpi=_DOTS_PER_INCH, format="png")


def _bars(axes: Any, report: QualityReport, name: str) -> None:
    names = list(report.conditions)
    bars = axes.barh(names, [getattr(report.conditions[each], name) for each in names])
    axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)


def _costs(axes: Any, report: TableReport, name: str) -> None:
    for row in report.rows:
        value = getattr(row.score, name)
        axes.scatter(row.passes_per_frame, value, s=18)
        axes.annotate(row.name, (row.passes_per_frame, value), fontsize=6, xytext=(3, 2), textcoords="offset points")
    axes.set_xlabel("passes of a half of the denoiser for each frame")
