"""`vexpress verify`: its flags, and one call. Nothing heavy is imported before it runs."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.precision import PRECISIONS

ON_A_GPU = ("torch-cuda", "onnxruntime-cuda")  # which other commands choose by --device
AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_commands(add: AddCommand, backends: tuple[str, ...]) -> None:
    """Add the command; `add(name, run, summary)` makes its parser, `backends` are the names that all commands take."""
    backends += ON_A_GPU
    parser = add("verify", _verify, "check a bundle's graphs on a backend against the exported networks")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--backend", choices=backends, default="auto", help="what runs the graphs")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: all in the bundle that the backend runs")
    parser.add_argument(
        "--dtype", choices=PRECISIONS, help="what openvino and torch compute in (default: their choice)"
    )
    parser.add_argument(
        "--bisect", choices=backends, metavar="BACKEND", help="find the first tensor that differs from this backend's"
    )
    parser.add_argument("--bisect_precision", choices=PRECISIONS, help="precision of the graphs on that side")
    parser.add_argument("--bisect_dtype", choices=PRECISIONS, help="what that side computes in")
    parser.add_argument("--graph", action="append", metavar="GRAPH", help="with --bisect: only this one (repeatable)")
    parser.add_argument("--threshold", type=float, metavar="DB", help="with --bisect: signal to error that is enough")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def _verify(args: argparse.Namespace) -> int:
    from vexpress_trt.engines.verify import format_results, verify_bundle

    if args.bisect is not None:
        return _bisect(args)
    for name in ("bisect_precision", "bisect_dtype", "graph", "threshold"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} is about --bisect: name the backend to compare with there.")
    results = verify_bundle(args.bundle, backend=args.backend, precision=args.precision, dtype=args.dtype, tell=_tell)
    print(json.dumps([result.as_dict() for result in results], indent=2) if args.json else format_results(results))
    return 0 if all(result.passed for result in results) else 1


def _bisect(args: argparse.Namespace) -> int:
    from vexpress_trt.engines.bisect import Side, bisect, format_divergences, settled
    from vexpress_trt.engines.bundle import Bundle

    bundle = Bundle.open(args.bundle)
    one = settled(bundle, Side(args.backend, args.precision, args.dtype))
    other = settled(bundle, Side(args.bisect, args.bisect_precision, args.bisect_dtype))
    results = bisect(bundle, one, other, graphs=args.graph, threshold=args.threshold, report=_tell)
    if args.json:
        print(json.dumps([result.as_dict() for result in results], indent=2))
    else:
        print(format_divergences(results, one, other))
    return 0 if all(result.agrees for result in results) else 1


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
