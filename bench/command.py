"""The sub-commands of `vexpress bench`: their flags, and one call each. Nothing heavy is imported before they run."""

import argparse
from collections.abc import Callable
from dataclasses import fields
from math import inf
from pathlib import Path
from typing import Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.request import GenerationRequest

_ENGINE = "backend dtype threads image_width image_height context_frames guidance_scale".split()
_JOB = (
    "reference_image_path audio_path kps_path retarget_strategy num_inference_steps guidance_scale "
    "reference_attention_weight audio_attention_weight context_frames context_overlap window_batch seed fps "
    "image_width image_height dtype backend threads"
).split()
_RANGES = [name for name in _JOB if name not in ("backend", "dtype")]  # it is onnxruntime in FP32
_QUALITY = (
    "preset num_inference_steps solver guidance_interval context_frames context_overlap seed dtype backend threads"
).split()
_TABLE_CLIPS = 6  # for each row
_HELP = {
    "stages": "seconds, memory and reached share of this machine of every stage of a bundle",
    "compare": "a whole job by the original's order of work and by the engines, in turns",
    "plain": "one denoiser call with and without the exact savings, in turns",
    "sweep": "speed and memory against clip length, windows per call and threads",
    "quality": "what the clips of a model of the drawn world are worth, with and without each input",
    "ranges": "the largest values inside every graph over a real clip: what FP16 can hold",
    "plot": "a PNG of the results of compare and stages",
}

AddFlag = Callable[[argparse.ArgumentParser, Any], None]


def add_commands(bench: argparse.ArgumentParser, add_request_flag: AddFlag) -> None:
    """Fill the parser of `vexpress bench`; `add_request_flag` adds the flag of one of the request's fields."""
    commands = bench.add_subparsers(dest="measurement", required=True, metavar="WHAT")
    request = {spec.name: spec for spec in fields(GenerationRequest)}

    def command(name: str, run: Callable[[argparse.Namespace], int], flags: list[str]) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=_HELP[name], description=_HELP[name], allow_abbrev=False)
        parser.set_defaults(run=run)
        for flag in flags:
            add_request_flag(parser, request[flag])
        return parser

    def common(parser: argparse.ArgumentParser, repeats: int) -> None:
        parser.add_argument(
            "--repeats", type=int, default=repeats, metavar="N", help=f"how often to measure (default {repeats})"
        )
        parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")

    parser = command("stages", _stages, [*_ENGINE, "context_overlap", "num_inference_steps"])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    common(parser, 5)
    parser.add_argument(
        "--startup_repeats",
        type=int,
        default=3,
        metavar="N",
        help="processes whose start is measured, 0 for none (default 3)",
    )
    parser.add_argument("--no_roofline", action="store_true", help="do not measure what the machine can do at best")

    parser = command("compare", _compare, _JOB)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--checkpoints", type=Path, required=True, metavar="DIR", help="what the bundle was exported from"
    )
    parser.add_argument("--seconds", type=float, metavar="S", help="cut or repeat the speech to this length")
    common(parser, 3)

    parser = command("plain", _plain, _ENGINE)
    parser.add_argument("exact", type=Path, metavar="BUNDLE")
    parser.add_argument("plain", type=Path, metavar="PLAIN_BUNDLE", help="made with `vexpress export --plain`")
    common(parser, 5)

    parser = command("sweep", _sweep, [*_JOB, "save_gpu_memory"])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--lengths",
        type=_numbers(float),
        default=(20.0, 60.0, 600.0),
        metavar="S,S",
        help="seconds of speech (default 20,60,600)",
    )
    parser.add_argument(
        "--window_batches", type=_numbers(int), default=(), metavar="N,N", help="windows per call, at the first length"
    )
    parser.add_argument(
        "--thread_counts", type=_numbers(int), default=(), metavar="N,N", help="CPU threads, at the first length"
    )
    common(parser, 1)

    parser = command("ranges", _ranges, _RANGES)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")

    parser = command("quality", _quality, _QUALITY)
    parser.add_argument("bundle", type=Path, nargs="?", metavar="BUNDLE", help="default: the model in the box")
    for name in ("guidance_scale", "reference_attention_weight", "audio_attention_weight"):
        parser.add_argument(
            f"--{name}", type=float, metavar="X", help="default: what the model in the box was trained for"
        )
    parser.add_argument(
        "--clips", type=int, metavar="N", help=f"held-out clips, 2 or more (default: all, with --table {_TABLE_CLIPS})"
    )
    parser.add_argument("--table", action="store_true", help="a row for each setting; goes on where --json ended")
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="with --table: make this row anew")
    parser.add_argument("--minutes", type=float, metavar="N", help="with --table: begin no row after so many minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="also draw them here")

    parser = command("plot", _plot, [])
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT", help="JSON files of compare and stages")
    parser.add_argument("--output", type=Path, required=True, metavar="PNG", help="the picture to write")


def _stages(args: argparse.Namespace) -> int:
    from vexpress_trt.bench.stages import StageSettings, measure_stages

    given = _given(args, [*_ENGINE, "context_overlap", "num_inference_steps"])
    return _shown(
        args,
        lambda: measure_stages(
            StageSettings(
                args.bundle,
                repeats=args.repeats,
                startup_repeats=args.startup_repeats,
                roofline=not args.no_roofline,
                **given,
            )
        ),
    )


def _compare(args: argparse.Namespace) -> int:
    from vexpress_trt.bench.compare import CompareSettings, compare

    return _shown(args, lambda: compare(CompareSettings(_request(args), args.checkpoints, args.seconds, args.repeats)))


def _plain(args: argparse.Namespace) -> int:
    from vexpress_trt.bench.plain import PlainSettings, compare_plain

    given = _given(args, _ENGINE)
    return _shown(args, lambda: compare_plain(PlainSettings(args.exact, args.plain, repeats=args.repeats, **given)))


def _sweep(args: argparse.Namespace) -> int:
    from vexpress_trt.bench.sweep import SweepSettings, sweep

    return _shown(
        args,
        lambda: sweep(
            SweepSettings(
                _request(args, save_gpu_memory=args.save_gpu_memory),
                lengths=args.lengths,
                window_batches=args.window_batches,
                thread_counts=args.thread_counts,
                repeats=args.repeats,
            )
        ),
    )


def _ranges(args: argparse.Namespace) -> int:
    from vexpress_trt.bench.ranges import measure_ranges

    request = GenerationRequest(bundle=args.bundle, **{name: getattr(args, name) for name in _RANGES})
    return _shown(args, lambda: measure_ranges(request))


def _quality(args: argparse.Namespace) -> int:
    from vexpress_trt.bench.quality import QualitySettings, measure_quality
    from vexpress_trt.bench.quality_plot import check_plot, plot_quality
    from vexpress_trt.bench.quality_table import TableSettings, make_table
    from vexpress_trt.bench.report import check_json_path, write_json
    from vexpress_trt.models.box.box import SETTINGS, shipped_bundle

    if args.table and args.json is None:
        raise UserError("--json is missing: --table keeps its rows there.")
    if not args.table and (args.only or args.minutes is not None):
        raise UserError("--only and --minutes are about the rows of a table: give --table as well.")
    for path in (args.json, args.plot):
        check_json_path(path)
    if args.plot is not None:
        check_plot(args.plot)
    bundle = args.bundle or shipped_bundle()
    flags = {**SETTINGS, **_given(args, [*_QUALITY, *SETTINGS.keys() - {"fps"}])}
    if args.table:
        clips = _TABLE_CLIPS if args.clips is None else args.clips
        table = TableSettings(bundle, flags, clips, tuple(args.only), args.minutes)
        report = make_table(table, args.json)
    else:
        report = measure_quality(QualitySettings(bundle, flags, **_given(args, ["clips"])))
    print(report.as_markdown())
    if args.json is not None:
        write_json(report, args.json)
    if args.plot is not None:
        plot_quality(report, args.plot)
    return 0


def _plot(args: argparse.Namespace) -> int:
    from vexpress_trt.bench.plots import plot

    plot(args.results, args.output)
    print(f"wrote {args.output}")
    return 0


def _shown(args: argparse.Namespace, measure: Callable[[], Any]) -> int:
    """Measure, print the Markdown and write the JSON where it is asked for."""
    from vexpress_trt.bench.report import check_json_path, write_json

    check_json_path(args.json)
    report = measure()
    print(report.as_markdown())
    if args.json is not None:
        write_json(report, args.json)
    return 0


def _request(args: argparse.Namespace, **more: Any) -> GenerationRequest:
    return GenerationRequest(bundle=args.bundle, **{name: getattr(args, name) for name in _JOB}, **more)


def _given(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """The flags of these names that were given or have a default of their own."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _numbers(kind: type) -> Callable[[str], tuple]:
    def read(text: str) -> tuple:
        try:
            values = tuple(kind(part) for part in text.split(",") if part.strip())
        except ValueError:
            values = ()
        if not values or not all(0 < value < inf for value in values):
            raise argparse.ArgumentTypeError(f"{text!r}: a comma-separated list of positive numbers")
        return values

    return read
