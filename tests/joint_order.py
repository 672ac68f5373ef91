"""The original's order of denoising steps, with which others are compared."""

from collections.abc import Iterator

from vexpress_trt.runtime.windows import Call, WindowPlan


def joint_order(plan: WindowPlan, steps: int) -> Iterator[Call]:
    """Step by step over the whole clip."""
    return ((window, step) for step in range(steps) for window in range(plan.windows))
