"""All parts in turn; a JSON and a Markdown file; exit status 1 where one of them fails."""

import argparse
import math
import signal
import sys
from pathlib import Path
from time import perf_counter

from vexpress_trt.bench.gpu_check.apart import LEAST_SECONDS, in_groups, part_main, run_apart
from vexpress_trt.bench.gpu_check.parts import PARTS, SKIPPED, PartResult, Setting
from vexpress_trt.engines.gpu import gpu_status


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the parts' notes go")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where JSON and Markdown go (default: --out)")
    parser.add_argument("--quick", action="store_true", help="small sizes: is anything broken at all?")
    parser.add_argument("--repository", type=Path, default=Path(), metavar="DIR", help="the checkout (default: here)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the check itself")
    parser.add_argument("--only", help=f"comma-separated, of {', '.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for all parts together (default: no limit)")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile, which takes minutes")
    parser.add_argument("--bundle", type=Path, help="also time its denoiser by TensorRT, built into it if need be")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    setting = Setting(args.repository.resolve(), args.device, args.quick, args.bundle)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        part_main(args.part, setting, args.out)
        return 0
    asked = {"", *(["--compile"] if args.compile else []), *(["--bundle"] if args.bundle else [])}
    names = args.only.split(",") if args.only else [name for name, part in PARTS.items() if part.asked_by in asked]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}: choose of {', '.join(PARTS)}")
    if args.device == "cuda" and (reason := gpu_status().reason):
        print(f"gpu_check: error: {reason}: run it on a machine with an NVIDIA GPU", file=sys.stderr)
        return 2
    return _run(names, setting, args.out, args.results or args.out, args.seconds)


def _run(names: list[str], setting: Setting, out: Path, folder: Path, seconds: float) -> int:
    """Results are written after each part. Whoever stops the check gets those that there are."""
    from vexpress_trt.bench.gpu_check.digest import last_words
    from vexpress_trt.bench.gpu_check.report import describe_gpu, write_results

    results: list[PartResult] = []
    machine, end, stopped = describe_gpu(), perf_counter() + seconds, False

    def note(result: PartResult) -> Path:
        results.append(result)
        results.sort(key=lambda result: tuple(PARTS).index(result.name))
        print(f"{result.name}: {result.outcome} after {result.seconds:.1f} s", flush=True)
        return write_results(results, machine, setting, folder)

    written = folder
    try:
        for group in in_groups(names):
            left = end - perf_counter()
            if left < LEAST_SECONDS:
                for name in group:
                    written = note(PartResult(name, 0.0, found={SKIPPED: f"the {seconds:.0f} s were over"}))
                continue
            for result in run_apart(group, setting, out, left):
                written = note(result)
    except KeyboardInterrupt:
        stopped = True
    print(last_words(results))
    print(f"wrote {written} and its .json{'; stopped before the end' if stopped else ''}")
    return 1 if stopped or any(result.error for result in results) else 0


def _stop(*_: object) -> None:
    """`timeout` signals twice: what follows the first is not to be cut short by the second."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main(sys.argv[1:]))
