"""`vexpress build` and `vexpress engines`: flags, and one call each. Nothing heavy is imported before they run."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from vexpress_trt.engines.backend_name import PLANNED
from vexpress_trt.engines.precision import PRECISIONS
from vexpress_trt.engines.trt.host_code import TRUST_VARIABLE
from vexpress_trt.engines.trt.size_flags import SIZE_FLAGS, Range, SizeFlag

_SIZES = {
    "w": "pixels (default: the bundle's)",
    "h": "pixels (default: the bundle's)",
    "F": "frames per window (default: the bundle's)",
    "B": "windows per call (default 1)",
    "S": "speech that is heard at once, a range in either profile (default 60, the longest)",
}
AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_commands(add: AddCommand) -> None:
    """Add both commands; `add(name, run, summary)` makes the parser of one."""
    parser = add("build", _build, "engines for a bundle's graphs, once per GPU (TensorRT or TensorRT-RTX)")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--backend", choices=PLANNED, default="tensorrt-rtx", help="what builds and runs them (default tensorrt-rtx)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, help="default: the bundle's fastest")
    parser.add_argument("--target", type=_targets, metavar="SM,SM", help="build ahead of time for sm89,sm120, ...")
    parser.add_argument(
        "--gpu", "--gpu_id", dest="gpu_id", type=int, metavar="N", help="the GPU to build on and for (default 0)"
    )
    parser.add_argument("--graphs", nargs="+", metavar="GRAPH", help="only these")
    parser.add_argument(
        "--profile",
        choices=("static", "dynamic"),
        default="static",
        help="one size (default), or ranges: SIZES are then MIN-MAX, MIN-BEST-MAX, or MAX alone (half to all of it; 1 "
        "to all windows)",
    )
    for symbol, about in _SIZES.items():
        flag = SIZE_FLAGS[symbol]
        parser.add_argument(f"--{flag.name}", type=_reader(flag), metavar="SIZES", help=about)
    parser.set_defaults(window_batch=1)
    parser.add_argument(
        "--workspace", type=_gibibytes, metavar="GIB", help="scratch (default 8, or what the GPU has free)"
    )
    parser.add_argument("--builds", type=int, default=1, metavar="N", help="keep the fastest of N (default 1)")
    parser.add_argument("--timing_cache", type=Path, metavar="DIR", help="where measurements are kept (full TensorRT)")
    parser.add_argument("--optimization_level", type=int, choices=range(6), help="default: the builder's")
    parser.add_argument(
        "--version_compatible",
        action="store_true",
        help=f"for later TensorRT versions as well; the engines bring native code and run with {TRUST_VARIABLE}=1 only",
    )
    parser.add_argument("--hardware_compatible", action="store_true", help="for all GPUs from Ampere on")
    parser.add_argument("--weight_streaming", action="store_true", help="weights may stay in the host's memory")
    parser.add_argument("--force", action="store_true", help="build again what is there")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write time, peak memory and sizes here as JSON")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")

    parser = add("engines", _engines, "what is built in a bundle: list it, verify its bytes, prune what cannot be used")
    parser.add_argument("action", choices=("list", "verify", "prune"))
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def _build(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from vexpress_trt.engines.files import check_place
    from vexpress_trt.engines.trt.build import BuildSettings, build_engines
    from vexpress_trt.engines.trt.builder import BuildOptions
    from vexpress_trt.engines.trt.profile import ProfileSettings
    from vexpress_trt.engines.trt.report import write_report

    settings = BuildSettings(
        args.bundle,
        backend=args.backend,
        precision=args.precision,
        graphs=tuple(args.graphs) if args.graphs else None,
        gpu_id=args.gpu_id,
        profile=ProfileSettings(args.profile, **{flag.name: getattr(args, flag.name) for flag in SIZE_FLAGS.values()}),
        options=BuildOptions(
            args.target or (),
            args.workspace,
            args.optimization_level,
            args.version_compatible,
            args.hardware_compatible,
            args.weight_streaming,
        ),
        force=args.force,
        builds=args.builds,
        timing_cache=args.timing_cache,
    )
    if args.report is not None:
        check_place(args.report)
    with _Progress(quiet=args.quiet) as progress:
        report = build_engines(settings, progress)
    if args.report is not None:
        write_report(report, args.report)
    print(json.dumps(asdict(report), indent=2) if args.json else report.as_text())
    return 0


def _engines(args: argparse.Namespace) -> int:
    from vexpress_trt.engines.trt.inventory import format_engines, list_engines, prune_engines

    if args.action == "prune":
        rows, none = prune_engines(args.bundle), "nothing to prune"
    else:
        rows, none = list_engines(args.bundle, verify=args.action == "verify"), f"{args.bundle} has no engines"
    print(json.dumps([row.as_dict() for row in rows], indent=2) if args.json else format_engines(rows, none))
    return 1 if args.action == "verify" and any(row.problem for row in rows) else 0


class _Progress:
    """One line on stderr: graph, phase, share and time left; on a terminal it is rewritten in place."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._graph = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        if self._graph and sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def __call__(self, event: Any) -> None:
        if event.phase.startswith("stopping"):
            start = "\r\033[K" if sys.stderr.isatty() else ""
            print(f"{start}{event.phase}", file=sys.stderr, flush=True)
            return
        if self._quiet:
            return
        left = "" if event.remaining is None else f", about {event.remaining:.0f} s left"
        line = f"{event.number}/{event.count} {event.graph}"
        if sys.stderr.isatty():
            print(f"\r\033[K{line}: {event.share:.0%} {event.phase}{left}", end="", file=sys.stderr, flush=True)
        elif event.graph != self._graph:
            print(f"{line}{left}", file=sys.stderr, flush=True)
        self._graph = event.graph


def _targets(text: str) -> tuple[str, ...]:
    chosen = tuple(dict.fromkeys(part.strip().lower().replace("_", "") for part in text.split(",") if part.strip()))
    if not chosen or not all(part.startswith("sm") and part[2:].isdecimal() for part in chosen):
        raise argparse.ArgumentTypeError(f"{text!r}: compute capabilities such as sm89,sm120")
    return chosen


def _reader(flag: SizeFlag) -> Callable[[str], float | Range]:
    def read(text: str) -> float | Range:
        try:
            return flag.parse(text)
        except ValueError as problem:
            raise argparse.ArgumentTypeError(str(problem)) from None

    return read


def _gibibytes(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0625 <= value <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of GiB from 0.0625 to 1024")
    return int(value * 2**30)
