"""All parts in turn; a JSON and a Markdown file; exit status 1 where one of them fails."""

import argparse
import sys
from pathlib import Path

from vexpress_trt.bench.gpu_check.parts import PARTS, Setting, part_main, run_apart
from vexpress_trt.engines.gpu import gpu_status


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the parts' notes go")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where JSON and Markdown go (default: --out)")
    parser.add_argument("--quick", action="store_true", help="small sizes: is anything broken at all?")
    parser.add_argument("--repository", type=Path, default=Path(), metavar="DIR", help="the checkout (default: here)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the check itself")
    parser.add_argument("--only", help=f"comma-separated, of {', '.join(PARTS)}")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile, which takes minutes")
    parser.add_argument("--bundle", type=Path, help="also time its denoiser by TensorRT, built into it if need be")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    setting = Setting(args.repository.resolve(), args.device, args.quick, args.bundle)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        part_main(args.part, setting, args.out)
        return 0
    asked = {"compiled": args.compile, "full_tensorrt": args.bundle is not None}
    names = args.only.split(",") if args.only else [name for name in PARTS if asked.get(name, True)]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}: choose of {', '.join(PARTS)}")
    if args.device == "cuda" and (reason := gpu_status().reason):
        print(f"gpu_check: error: {reason}: run it on a machine with an NVIDIA GPU", file=sys.stderr)
        return 2
    return _run(names, setting, args.out, args.results or args.out)


def _run(names: list[str], setting: Setting, out: Path, folder: Path) -> int:
    from vexpress_trt.bench.gpu_check.report import describe_gpu, write_results

    results, machine = [], describe_gpu()
    for name in names:
        results.append(run_apart(name, setting, out))
        last = results[-1]
        print(f"{name}: {last.outcome} after {last.seconds:.1f} s", flush=True)
        written = write_results(results, machine, setting, folder)
    print(written.read_text(encoding="utf-8"))
    print(f"wrote {written} and {written.with_suffix('.json').name}")
    return 1 if any(result.error for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
