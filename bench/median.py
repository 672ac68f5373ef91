"""What the native median filter costs beside scipy's, and how near it comes to copying memory.

    python -m vexpress_trt.bench.median --json bench/results/median.json

The contestants take turns within each round, so whatever else the machine does hits all of them; medians are reported.
Traffic counts every byte once in and once out, the least any filter (or copy) can move.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vexpress_trt.bench.machine import describe_machine
from vexpress_trt.runtime import _native


def _copier(source: np.ndarray, target: np.ndarray, threads: int) -> Callable[[], None]:
    """A copy in `threads` pieces; NumPy releases the interpreter lock while it copies."""
    pieces = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    if threads == 1:
        return lambda: np.copyto(target, source)
    pool = ThreadPoolExecutor(threads)
    return lambda: [None for _ in pool.map(lambda piece: np.copyto(piece[1], piece[0]), pieces)] and None


def _streamer(clip: np.ndarray, out: np.ndarray, threads: int, kernel: str) -> Callable[[], None]:
    def run() -> None:
        last = len(clip) - 1
        for t in range(len(clip)):
            _native.median_3x3x3(clip[abs(t - 1)], clip[t], clip[last - abs(last - t - 1)], out[t], threads, kernel)

    return run


def measure(frames: int, height: int, width: int, threads: int, rounds: int, scipy_frames: int) -> dict:
    """Seconds per frame and GB/s of every contestant on one random clip uint8 [frames, height, width, 3]."""
    import scipy
    from scipy.ndimage import median_filter

    clip = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    out, part = np.empty_like(clip), clip[:scipy_frames]
    part_out = np.empty_like(part)
    counts = sorted({1, threads})

    contestants: dict[str, tuple[int, Callable[[], None]]] = {}
    for count in counts:
        contestants[f"copy, threads: {count}"] = (frames, _copier(clip, out, count))
    for kernel in _native.median_kernels():
        for count in counts:
            run_clip = lambda kernel=kernel, count=count: _native.median_3x3x3_clip(clip, out, count, kernel)  # noqa: E731
            contestants[f"clip, {kernel}, threads: {count}"] = (frames, run_clip)
    for count in counts:
        stream = _streamer(clip, out, count, "")
        contestants[f"frame by frame, {_native.median_kernels()[0]}, threads: {count}"] = (frames, stream)
    contestants["scipy.ndimage.median_filter"] = (
        scipy_frames,
        lambda: median_filter(part, (3, 3, 3, 1), mode="mirror", output=part_out),
    )

    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _, run in contestants.values():
        run()
    for _ in range(rounds):
        for name, (_, run) in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    _native.median_3x3x3_clip(part, out[:scipy_frames], threads)
    if not np.array_equal(out[:scipy_frames], part_out):
        raise AssertionError("the native filter and scipy differ")

    frame_bytes = 2 * height * width * 3
    results = []
    for name, (count, _) in contestants.items():
        per_frame = [value / count for value in seconds[name]]
        median = statistics.median(per_frame)
        spread = [min(per_frame) * 1e3, max(per_frame) * 1e3]
        results.append(
            {"name": name, "ms_per_frame": median * 1e3, "ms_range": spread, "gb_per_s": frame_bytes / median / 1e9}
        )
    return {
        "what": "3x3x3 median of uint8 RGB frames; ms per frame (median of the rounds) and GB/s in plus out",
        "frames": frames,
        "scipy_frames": scipy_frames,
        "height": height,
        "width": width,
        "rounds": rounds,
        "results": results,
        "machine": describe_machine(),
        "scipy": scipy.__version__,
    }


def table(report: dict) -> str:
    """The report as text, with each contestant's share of the fastest copy."""
    copy = max(row["gb_per_s"] for row in report["results"] if row["name"].startswith("copy"))
    scipy_ms = next(row["ms_per_frame"] for row in report["results"] if row["name"].startswith("scipy"))
    lines = [f"{'':38} {'ms/frame':>9} {'GB/s':>7} {'of copy':>8} {'x scipy':>8}"]
    for row in report["results"]:
        share, gain = row["gb_per_s"] / copy, scipy_ms / row["ms_per_frame"]
        lines.append(f"{row['name']:38} {row['ms_per_frame']:9.3f} {row['gb_per_s']:7.2f} {share:8.0%} {gain:8.0f}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m vexpress_trt.bench.median", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--scipy_frames", type=int, default=2, help="scipy gets this many frames of the clip")
    parser.add_argument("--json", type=Path, help="write the report there as well")
    options = parser.parse_args(argv)
    report = measure(
        options.frames, options.height, options.width, options.threads, options.rounds, options.scipy_frames
    )
    print(table(report))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
