"""`vexpress bench plot`: results as pictures, one panel for each kind that has one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vexpress_trt.bench.machine import machine_line
from vexpress_trt.bench.report import number, read_json
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path, check_place

Result = dict[str, Any]
_PANEL_INCHES = (7.0, 4.5)
_DOTS_PER_INCH = 150
_BETTER_THAN_ALL = 1.06  # where identical pictures are drawn, as a multiple of the best PSNR


def plot(results: list[Path], output: Path) -> None:
    """Draw `results` (JSON files of `bench compare` and `bench stages`) into the PNG `output`.

    Raises UserError where matplotlib is missing, the output is no .png or cannot be written, or a file has nothing that
    can be drawn.
    """
    if output.suffix.lower() != ".png":
        raise UserError(f"--output {output}: the picture is a PNG, let the name end in .png")
    check_place(output)
    by_kind: dict[str, list[Result]] = {}
    for path in results:
        result = read_json(path)
        if result["kind"] not in _PANELS:
            raise UserError(f"{path} is a result of `bench {result['kind']}`: plots exist of {' and '.join(_PANELS)}")
        by_kind.setdefault(result["kind"], []).append(result)
    figure = _figure(len(by_kind))
    for axes, (kind, found) in zip(figure.axes, by_kind.items(), strict=True):
        try:
            _PANELS[kind](axes, found)
        except (KeyError, TypeError, ValueError) as problem:
            raise UserError(
                f"a result of `bench {kind}` is none of this version ({problem!r}): measure again with --json"
            ) from problem
    with atomic_path(output) as temporary:
        figure.savefig(temporary, dpi=_DOTS_PER_INCH, format="png")


def _figure(panels: int) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib: install it with `pip install 'vexpress-trt[bench]'`") from None
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width, height * panels), layout="constrained")
    for panel in range(panels):
        figure.add_subplot(panels, 1, panel + 1)
    return figure


def _pareto(axes: Any, results: list[Result]) -> None:
    """Seconds per frame against PSNR to the original's FP32 frames; up and left is better."""
    points = [
        (each["seconds_per_frame"], each["against_baseline"], _named(_label(result, each), result, results))
        for result in results
        for each in result["contenders"]
    ]
    known = [likeness["psnr_db"] for _, likeness, _ in points if likeness and likeness["psnr_db"] is not None]
    top = _BETTER_THAN_ALL * max(known, default=100.0)
    axes.axhline(top, color="tab:grey", linewidth=0.8, linestyle=":")
    for seconds, likeness, label in points:
        exact = likeness is None or likeness["psnr_db"] is None
        axes.scatter(
            seconds, top if exact else likeness["psnr_db"], marker="o" if likeness else "s", label=label, zorder=2
        )
    axes.set_ylim(top=1.05 * top)
    axes.set_xlim(left=0)
    axes.legend(fontsize=8)
    axes.set_xlabel("seconds per frame, whole job")
    axes.set_ylabel("PSNR to the FP32 baseline, dB\n(dotted: identical)")
    axes.set_title(_title(results))
    axes.grid(alpha=0.3)


def _stage_bars(axes: Any, results: list[Result]) -> None:
    """Seconds that each stage takes for one output frame, with all denoising steps."""
    names: list[str] = []
    series = []
    for result in results:
        seconds = _seconds_per_output_frame(result)
        names += [name for name in seconds if name not in names]
        series.append((_named(_setting(result, result), result, results), seconds))
    thickness = 0.8 / len(series)
    for place_in_group, (label, seconds) in enumerate(series):
        shift = (place_in_group - (len(series) - 1) / 2) * thickness
        places = [place + shift for place in range(len(names))]
        values = [seconds.get(name, 0.0) for name in names]
        bars = axes.barh(places, values, thickness, label=label)
        axes.bar_label(bars, [number(value, 2) for value in values], padding=2, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(right=1.15 * max(max(seconds.values()) for _, seconds in series))
    axes.set_xlabel("seconds per output frame")
    axes.set_title(_title(results))
    axes.legend(fontsize=8)


def _seconds_per_output_frame(result: Result) -> dict[str, float]:
    stages = {stage["stage"]: stage for stage in result["stages"] if stage["frames"]}
    seconds = {}
    for name, stage in stages.items():
        if name.startswith("denoiser"):
            fresh = result["context_frames"] - result["context_overlap"]
            seconds[name] = stage["seconds"]["median"] * result["num_inference_steps"] / fresh
        else:
            seconds[name] = stage["seconds"]["median"] / stage["frames"]
    return seconds


def _label(result: Result, contender: Result) -> str:
    setting = _setting(result, contender)
    return f"baseline, {setting}" if contender["against_baseline"] is None else setting


def _setting(result: Result, ran: Result) -> str:
    return f"{ran['backend']} {ran['dtype']}, {result['num_inference_steps']} steps"


def _named(label: str, result: Result, results: list[Result]) -> str:
    """The label, with job and machine before it where the results are of several."""
    shared = _shared(results)
    return ": ".join([*(fact for fact in _facts(result) if fact not in shared), label])


def _title(results: list[Result]) -> str:
    return ", ".join(_shared(results))


def _shared(results: list[Result]) -> list[str]:
    return [fact for fact, *others in zip(*map(_facts, results), strict=True) if set(others) <= {fact}]


def _facts(result: Result) -> tuple[str, str]:
    """The job and the machine of a result."""
    size = f"{result['image_width']}x{result['image_height']}"
    return f"{result['bundle']}, {size}", machine_line(result["machine"])


_PANELS: dict[str, Callable[[Any, list[Result]], None]] = {"compare": _pareto, "stages": _stage_bars}
