"""One long clip over several devices: how many windows could be denoised at once, and how much faster that could be.

    python -m vexpress_trt.bench.batch_windows --out batch_windows.json

Pure counting, with calls of equal length and transport for nothing: bounds, which no implementation can pass.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from vexpress_trt.runtime.windows import Call, WindowPlan, latency_order, throughput_fronts

WINDOW, OVERLAP, FPS = 24, 4, 30


@dataclass(frozen=True)
class Bound:
    """`calls` denoiser calls on `devices`: `rounds` of them by demand, one call a device each; speed-ups over one.

    `first_window_rounds`: until the first window is final. `live_windows`: the most that were begun and not final,
    whose latents lie in memory. `largest_front`: calls that are independent of one another in the order of
    `--window_batch`; `speedup_by_fronts` is that of whole fronts, one after the other.
    """

    seconds: float
    steps: int
    windows: int
    calls: int
    devices: int
    rounds: int
    first_window_rounds: int
    live_windows: int
    speedup: float
    largest_front: int
    speedup_by_fronts: float


def bound(plan: WindowPlan, steps: int, devices: int, seconds: float) -> Bound:
    """What `devices` could do at best for a clip of so many seconds."""
    rounds, first, live = by_demand(plan, steps, devices)
    calls = plan.windows * steps
    fronts = [len(front) for front in throughput_fronts(plan, steps)]
    return Bound(
        seconds=seconds,
        steps=steps,
        windows=plan.windows,
        calls=calls,
        devices=devices,
        rounds=len(rounds),
        first_window_rounds=first,
        live_windows=live,
        speedup=round(calls / len(rounds), 2),
        largest_front=max(fronts),
        speedup_by_fronts=round(calls / sum(-(-front // devices) for front in fronts), 2),
    )


def by_demand(plan: WindowPlan, steps: int, devices: int) -> tuple[list[list[Call]], int, int]:
    """Rounds of up to `devices` independent calls, those of the latency order first; rounds until the first window is
    final; the most windows that were begun and not final."""
    waiting, done = list(latency_order(plan, steps)), [0] * plan.windows
    rounds, first, live = [], 0, 0
    while waiting:
        ready = (call for call in waiting if _ready(call, plan, done))
        rounds.append(list(islice(ready, devices)))
        for window, step in rounds[-1]:
            done[window] = step + 1
        chosen = set(rounds[-1])
        waiting = [call for call in waiting if call not in chosen]
        if not first and done[0] == steps:
            first = len(rounds)
        live = max(live, sum(0 < step < steps for step in done))
    return rounds, first, live


def _ready(call: Call, plan: WindowPlan, done: list[int]) -> bool:
    window, step = call
    neighbours = done[max(0, window - plan.reach) : window + plan.reach + 1]
    return done[window] == step and min(neighbours) >= step


def main() -> None:
    """Count for the official model's windows, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, nargs="+", default=(5.0, 20.0, 60.0))
    parser.add_argument("--steps", type=int, nargs="+", default=(25, 5))
    parser.add_argument("--devices", type=int, nargs="+", default=(1, 2, 4, 8))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = [
        bound(WindowPlan.covering(round(seconds * FPS), WINDOW, OVERLAP), steps, devices, seconds)
        for steps in args.steps
        for seconds in args.seconds
        for devices in args.devices
    ]
    about = {
        "command": "python -m vexpress_trt.bench.batch_windows",
        "window": WINDOW,
        "overlap": OVERLAP,
        "fps": FPS,
        "bounds": [asdict(row) for row in rows],
    }
    args.out.write_text(json.dumps(about, indent=1) + "\n")
    for row in rows:
        print(*asdict(row).values())


if __name__ == "__main__":
    main()
