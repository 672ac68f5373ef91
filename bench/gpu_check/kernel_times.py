"""Where the time of a run on the GPU goes: its kernels by name, and by what they do."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch

# Of libraries; ours over frames is a kind of its own.
_ATTENTION = ("flash", "fmha", "attention", "sdpa", "mha")
_OVER_FRAMES = "temporal_attention"
# Our Triton programs, by their whole names: torch has a `layer_norm` too, within longer ones.
OURS = {"add_rows", "sum_and_moments", "group_scales", "scale_rows", "layer_norm", "gated_gelu"}
# {kind: what its kernels' names have}, the first that fits.
_KINDS = {
    "made by torch.compile": r"^triton_",
    "copies and changes of layout": r"memcpy|memset|copy_kernel|CatArray|nchwtonhwc|nhwctonchw|transpose|permute",
    "convolutions": r"conv|fprop|implicit_gemm|winograd|cudnn",
    "matrix products": r"gemm|gemv|nvjet|cutlass|splitk|cublas",
    "norms": r"norm|RowwiseMoments",
    "element-wise": r"elementwise|vectorized|silu|gelu|reduce_kernel",
}
# {kind: the operations whose count it is measured by}
_COUNTED = {"matrix products": "products", "convolutions": "convolutions", "attention": "attention"}

Kernel = tuple[str, float, int]  # name, milliseconds of all launches, launches


def attends(kernel: str) -> bool:
    """Whether a kernel is a library's fused attention, by its name."""
    return kernel != _OVER_FRAMES and any(word in kernel.lower() for word in _ATTENTION)


def kind_of(kernel: str) -> str:
    """What a kernel does, by its name."""
    if kernel == _OVER_FRAMES:
        return "attention over frames, ours"
    if kernel in OURS:
        return "norms and element-wise, ours"
    if attends(kernel):
        return "attention"
    return next((kind for kind, words in _KINDS.items() if re.search(words, kernel, re.IGNORECASE)), "other")


def by_kind(kernels: Iterable[Kernel], flop: dict[str, int]) -> dict[str, dict[str, float]]:
    """{kind: milliseconds, launches, share of the whole and, of those that `flop` counts, TFLOP/s}, the longest first.

    Attention's rate is an upper bound where the one over frames, which is counted with it, is a kernel of its own.
    """
    kinds: dict[str, dict[str, float]] = {}
    for name, ms, count in kernels:
        kind = kinds.setdefault(kind_of(name), {"ms": 0.0, "launches": 0})
        kind["ms"] += ms
        kind["launches"] += count
    total = sum(kind["ms"] for kind in kinds.values())
    for name, kind in kinds.items():
        kind["share"] = kind["ms"] / total if total else 0.0
        if name in _COUNTED and kind["ms"]:
            kind["tflops"] = flop[_COUNTED[name]] / kind["ms"] / 1e9
    return dict(sorted(kinds.items(), key=lambda item: -item[1]["ms"]))


def profile(work: Callable[[], None], flop: dict[str, int], *, most: int = 25) -> dict[str, Any]:
    """The kernels of one run of `work`: their kinds, which ones attend, the slowest."""
    kernels = recorded(work)
    return {
        "total_ms": sum(ms for _, ms, _ in kernels),
        "kinds": by_kind(kernels, flop),
        "attention": sorted({name[:160] for name, _, _ in kernels if attends(name)}),
        "slowest": [{"name": name[:160], "ms": round(ms, 3), "count": count} for name, ms, count in kernels[:most]],
    }


def recorded(work: Callable[[], None]) -> list[Kernel]:
    """What the GPU did in one run of `work`, the longest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    torch.cuda.synchronize()
    with profiled(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    kernels = ((event.key, event.self_device_time_total / 1e3, event.count) for event in seen.key_averages())
    return sorted((kernel for kernel in kernels if kernel[1]), key=lambda kernel: -kernel[1])
