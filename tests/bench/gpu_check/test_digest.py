"""The GPU check's last words: the aims' figures on one screen."""

from vexpress_trt.bench.gpu_check.digest import last_words
from vexpress_trt.bench.gpu_check.parts import PartResult


def test_the_last_words_fit_a_screen_and_have_the_aims_figures() -> None:
    products = {"matrix products": {"ms": 30.0, "launches": 10, "tflops": 700.0}}
    small = {f"kind {number}": {"ms": 1.0, "launches": 1} for number in range(8)}
    speed = {
        "ceiling_fp16_tflops": {"before": 742.0, "in_turns": 700.0},
        "exact captured, fp16": {
            "ms": 140.0, "tflops": 399.0, "share_of_ceiling": 0.57, "share_of_ceiling_before": 0.538,
        },
        "times_faster_than_original's way, eager": 1.86,
        "kernels": {"total_ms": 40.0, "kinds": products | small},
        "kernels_unfused": {"total_ms": 240.0, "kinds": products | {"norms": {"ms": 26.0, "launches": 209}}},
    }  # fmt: skip
    growth = {"memory_growth_mib": 0.0}
    results = [
        PartResult("kernels", 1.0, found={"tests": {"passed": 7, "failed": 1}}),
        PartResult("golden", 1.0, found={"a": {"agrees": True}, "b": {"agrees": False}, "skipped": "vae"}),
        PartResult("speed", 1.0, "x" * 5000, speed),
        PartResult("waits", 1.0, found={"waits_per_call": 0.0, "memory": {"watched_over_frames": 542, **growth}}),
        PartResult(
            "generate",
            1.0,
            found={
                "fp32": {"psnr_to_the_cpu_db": "inf"},
                "a long clip": {"frames_per_second": 99.0, "frames": 1500, **growth},
            },
        ),
        PartResult("clip", 1.0, found={"loop_ms_per_call": 150.0}),
    ]
    said = last_words(results)
    assert len(said) < 3000
    for row in (
        "| GPU tests | 7 passed, 1 failed |",
        "| graphs that give the golden arrays | 1 of 2 |",
        "| call, exact captured, fp16 | 140.0 ms, 399 TFLOP/s, 57.0% of the ceiling (53.8% of the cool one) |",
        "| faster than original's way, eager | 1.86 times |",
        "| waits in a call | 0 |",
        "| memory that a loop gains | 0 MiB over 542 frames |",
        "| clip of the model in the box, fp32 | inf dB from the CPU's |",
        "| a long clip | 99.0 frames/s, 0 MiB over 1500 frames |",
        "| full-size loop, a call | 150.0 ms |",
        "| matrix products | 30.0 ms in 10, 700 TFLOP/s | 30.0 ms in 10, 700 TFLOP/s |",
        "| norms |  | 26.0 ms in 209 |",
        "| together | 40.00 ms | 240.0 ms |",
    ):
        assert row in said
    assert last_words([]) == ""
