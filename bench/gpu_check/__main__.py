"""All parts in turn; a JSON and a Markdown file; exit status 1 where one of them fails."""

import argparse
import sys
from pathlib import Path

from vexpress_trt.bench.gpu_check.parts import ON_REQUEST, PARTS, Setting, part_main, run_apart


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    parser.add_argument("--quick", action="store_true", help="small sizes: is anything broken at all?")
    parser.add_argument("--repository", type=Path, default=Path(), metavar="DIR", help="the checkout (default: here)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the check itself")
    parser.add_argument("--only", help=f"comma-separated, of {', '.join(PARTS)}")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile, which takes minutes")
    parser.add_argument("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    setting = Setting(args.repository.resolve(), args.device, args.quick)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.part:
        return part_main(args.part, setting, args.out)
    names = args.only.split(",") if args.only else [n for n in PARTS if n not in ON_REQUEST or args.compile]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}: choose of {', '.join(PARTS)}")
    return _run(names, setting, args.out)


def _run(names: list[str], setting: Setting, out: Path) -> int:
    from vexpress_trt.bench.gpu_check.report import describe_gpu, write_results

    results = []
    for name in names:
        results.append(run_apart(name, setting, out))
        last = results[-1]
        print(f"{name}: {'FAILED' if last.error else 'ok'} in {last.seconds:.1f} s", flush=True)
        write_results(results, describe_gpu(), setting, out)
    print((out / "gpu_check.md").read_text(encoding="utf-8"))
    return 1 if any(result.error for result in results) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
