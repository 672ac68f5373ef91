"""What a check found, in a few lines: the figures that its aims ask for, and what went wrong."""

from collections.abc import Iterable
from typing import Any

from vexpress_trt.bench.gpu_check.parts import PartResult
from vexpress_trt.bench.report import number as digits
from vexpress_trt.bench.report import table

Found = dict[str, Any]
_LONGEST_ERROR = 400


def last_words(results: list[PartResult]) -> str:
    """For the terminal: the figures, where the time of a call goes, and the last words of what failed."""
    lines = [figures_table(results), kinds_table(results)]
    lines += [f"{result.name}: {result.error[-_LONGEST_ERROR:]}" for result in results if result.error]
    return "\n\n".join(line for line in lines if line)


def figures_table(results: list[PartResult]) -> str:
    """What was measured of the aims; "" where nothing was."""
    found = {result.name: result.found for result in results}
    rows = [
        *_tests(found.get("kernels", {})),
        *_equal(found.get("golden", {}), "agrees", "graphs that give the golden arrays"),
        *_equal(found.get("loop", {}), "captured_equals_eager", "loops that are the same captured and eager"),
        *_speed(found.get("speed", {})),
        *_compiled(found.get("compiled", {})),
        *_waits(found.get("waits", {})),
        *_generate(found.get("generate", {})),
        *_clip(found.get("clip", {})),
    ]
    return table(("in short", ""), rows) if rows else ""


def kinds_table(results: list[PartResult]) -> str:
    """Where the time of a full-size call goes, fused, unfused and compiled; "" where no GPU told."""
    found = {result.name: result.found for result in results}
    forms = {
        "fused": found.get("speed", {}).get("kernels"),
        "unfused": found.get("speed", {}).get("kernels_unfused"),
        "compiled": found.get("compiled", {}).get("kernels"),
    }
    kinds = {form: kernels["kinds"] for form, kernels in forms.items() if kernels}
    names = list(dict.fromkeys(name for one in kinds.values() for name in one))
    rows = [(name, *(_kind(one.get(name)) for one in kinds.values())) for name in names]
    total = ("together", *(f"{number(forms[form]['total_ms'], 4)} ms" for form in kinds))
    return table(("kernels of a call", *kinds), [*rows, total]) if rows else ""


def number(value: float | str, count: int = 3) -> str:
    """In so many digits; one that is not finite is a word."""
    return value if isinstance(value, str) else digits(value, count)


def _kind(kind: Found | None) -> str:
    if kind is None:
        return ""
    rate = f", {number(kind['tflops'])} TFLOP/s" if "tflops" in kind else ""
    return f"{number(kind['ms'])} ms in {kind['launches']}{rate}"


def _tests(found: Found) -> Iterable[tuple[str, str]]:
    if tests := found.get("tests"):
        yield "GPU tests", ", ".join(f"{count} {outcome}" for outcome, count in tests.items())


def _equal(found: Found, key: str, what: str) -> Iterable[tuple[str, str]]:
    cases = [case[key] for case in found.values() if isinstance(case, dict) and key in case]
    if cases:
        yield what, f"{sum(cases)} of {len(cases)}"


def _speed(found: Found) -> Iterable[tuple[str, str]]:
    for name, case in found.items():
        if isinstance(case, dict) and "share_of_ceiling" in case:
            share, cool = case["share_of_ceiling"], case["share_of_ceiling_before"]
            yield (
                f"call, {name}",
                f"{number(case['ms'], 4)} ms, {number(case['tflops'])} TFLOP/s, {share:.1%} of the ceiling "
                f"({cool:.1%} of the cool one)",
            )
        elif name.startswith("times_faster_than_"):
            yield f"faster than {name.removeprefix('times_faster_than_')}", f"{number(case)} times"
        elif name.startswith("ceiling_"):
            yield name, ", ".join(f"{when.replace('_', ' ')} {number(rate, 4)}" for when, rate in case.items())
        elif name == "gpu_at_work" and case:
            yield "GPU at work", ", ".join(f"{key} {value}" for key, value in case.items())


def _compiled(found: Found) -> Iterable[tuple[str, str]]:
    for name, value in _speed(found):
        yield f"beside torch.compile: {name}", value


def _waits(found: Found) -> Iterable[tuple[str, str]]:
    if "waits_per_call" in found:
        yield "waits in a call", number(found["waits_per_call"])
    if memory := found.get("memory"):
        yield "memory that a loop gains", _growth(memory, memory["watched_over_frames"])


def _generate(found: Found) -> Iterable[tuple[str, str]]:
    for name, case in found.items():
        if isinstance(case, dict) and "psnr_to_the_cpu_db" in case:
            yield f"clip of the model in the box, {name}", f"{number(case['psnr_to_the_cpu_db'])} dB from the CPU's"
    if long := found.get("a long clip"):
        yield "a long clip", f"{number(long['frames_per_second'])} frames/s, {_growth(long, long['frames'])}"


def _growth(memory: Found, frames: int) -> str:
    return f"{number(memory['memory_growth_mib'])} MiB over {frames} frames"


def _clip(found: Found) -> Iterable[tuple[str, str]]:
    if "loop_ms_per_call" in found:
        yield "full-size loop, a call", f"{number(found['loop_ms_per_call'], 4)} ms"
    if ten := found.get("ten_seconds_extrapolated"):
        yield (
            "ten seconds of 512x512, extrapolated",
            f"{number(ten['seconds'])} s, its first window after {number(ten['seconds_to_first_window'])} s",
        )
