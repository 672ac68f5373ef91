"""How fast and how patient a running server is: from the runtime's yield of a frame to its receipt, and overload.

    vexpress serve --workers 2 --queue 2 &
    python -m vexpress_trt.bench.serving --server 127.0.0.1:8001 --capacity 4 --output bench/results/serving.json

Server and client are on one machine and share a clock. The model in the box makes the frames, one step each at
512x512; nothing but the time of a frame's way is measured, so that the model does not matter. `capacity` is workers and
places in the queue together; four times as many clients then ask at once.
"""

import argparse
import json
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from vexpress_trt.bench.machine import describe_machine
from vexpress_trt.bench.report import write_json
from vexpress_trt.engines.errors import UserError
from vexpress_trt.models.box.clip_request import clip_request
from vexpress_trt.models.box.held_out import HeldOutClip
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.serving.client import Client, ServerBusy

SIDE = 512
CLIPS, FPS = 5, 10.0


@dataclass(frozen=True)
class Latency:
    """Milliseconds from the runtime's yield of a frame to its receipt. `first`: of each clip's first frame, `longest`
    among all. `request_ms`: from the sending of a request that asks for nothing usable to its refusal, the median."""

    frames: int
    median_ms: float
    p95_ms: float
    longest_ms: float
    first_median_ms: float
    first_longest_ms: float
    request_ms: float


@dataclass(frozen=True)
class Overload:
    """Clients that asked at once, and how it ended for them. Seconds are the longest wait of each kind."""

    clients: int
    capacity: int
    finished: int
    busy: int
    failed: int
    finished_after: float
    busy_after: float


@dataclass(frozen=True)
class Report:
    """What is written. `size`: of the frames whose latency was measured; the overload's clips are 128x128."""

    machine: dict[str, object]
    size: str
    latency: Latency
    overload: Overload


def measure_latency(client: Client, request: GenerationRequest, clips: int = CLIPS) -> Latency:
    """Stream `clips` clips, after one that warms the server up."""
    list(client.generate(request))
    each = []
    for _ in range(clips):
        generation = client.generate(request)
        for _ in generation:
            pass
        each.append(1e3 * np.array(generation.latency))
    every, first = np.concatenate(each), np.array([clip[0] for clip in each])
    refused = [_refusal_ms(client, request) for _ in range(50)]
    numbers = (
        np.median(every), np.percentile(every, 95), every.max(), np.median(first), first.max(), np.median(refused)
    )  # fmt: skip
    return Latency(len(every), *(round(float(number), 2) for number in numbers))


def measure_overload(url: str, token: str | None, request: GenerationRequest, capacity: int) -> Overload:
    """Four times `capacity` clients ask at the same moment."""
    ended: list[tuple[str, float]] = []
    barrier = threading.Barrier(4 * capacity)

    def ask() -> None:
        with Client(url, token) as client:
            barrier.wait()
            begin = time.monotonic()
            try:
                list(client.generate(request))
                outcome = "finished"
            except ServerBusy:
                outcome = "busy"
            except UserError:
                outcome = "failed"
            ended.append((outcome, time.monotonic() - begin))

    threads = [threading.Thread(target=ask) for _ in range(4 * capacity)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = Counter(outcome for outcome, _ in ended)
    longest = {kind: max((wait for outcome, wait in ended if outcome == kind), default=0.0) for kind in counts}
    return Overload(
        len(threads),
        capacity,
        counts["finished"],
        counts["busy"],
        counts["failed"],
        round(longest.get("finished", 0.0), 2),
        round(longest.get("busy", 0.0), 3),
    )


def _refusal_ms(client: Client, request: GenerationRequest) -> float:
    begin = time.monotonic()
    try:
        client.generate(replace(request, image_width=2048, image_height=2048))
    except UserError:
        return 1e3 * (time.monotonic() - begin)
    raise UserError("the server takes frames of 2048x2048: start it with a smaller --max_pixels")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, metavar="HOST:PORT")
    parser.add_argument("--token")
    parser.add_argument("--capacity", type=int, required=True, help="workers and places in the queue")
    parser.add_argument("--output", type=Path, required=True, metavar="JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vexpress-bench-") as folder, Client(args.server, args.token) as client:
        request = clip_request(HeldOutClip(0), Path(folder), portrait_cache=None)
        request = replace(request, fps=FPS, num_inference_steps=1, guidance_scale=1.0)
        latency = measure_latency(client, replace(request, image_width=SIDE, image_height=SIDE))
        overload = measure_overload(args.server, args.token, request, args.capacity)
    report = Report(describe_machine(), f"{SIDE}x{SIDE}", latency, overload)
    write_json(report, args.output)
    print(json.dumps(asdict(report), indent=1))


if __name__ == "__main__":
    main()
