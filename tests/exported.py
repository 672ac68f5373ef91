"""Bundles that tests share."""

from pathlib import Path

import pytest


def export_once(
    checkpoints: Path, target: Path, *, width: int, height: int, frames: int, precisions: tuple[str, ...] = ("fp32",)
) -> Path:
    """`target`, the bundle of a checkpoints folder. One thread makes it: tracing has no work for two."""
    torch = pytest.importorskip("torch")
    from vexpress_trt.export.build_bundle import export_bundle
    from vexpress_trt.export.checkpoints import load_checkpoints

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        export_bundle(
            load_checkpoints(checkpoints),
            target,
            precisions=precisions,
            image_width=width,
            image_height=height,
            context_frames=frames,
        )
    finally:
        torch.set_num_threads(before)
    return target
