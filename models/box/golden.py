"""Reference frames of the model in the box: `python -m vexpress_trt.models.box.golden` makes them anew.

Tests hold every backend and type to them, so that damage to any stage is seen as a picture that got worse. They are
made by onnxruntime in FP32 and must be made again when another model is put into the box.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from vexpress_trt.models.box.box import BOX, SETTINGS, shipped_bundle
from vexpress_trt.models.box.clip_request import clip_request
from vexpress_trt.models.box.held_out import CLIP_FRAMES, HeldOutClip
from vexpress_trt.runtime.generation import generate

GOLDEN = BOX / "golden.png"
CLIP = HeldOutClip(0)
SHOWN = np.linspace(0, CLIP_FRAMES - 1, 5).round().astype(int)  # of both windows, and of the frames they share
_STEPS = 4


def golden_frames(bundle: Path, **flags: object) -> np.ndarray:
    """The frames `SHOWN` of the golden clip, uint8 [5, 128, 128, 3]; `flags` are fields of the request."""
    with tempfile.TemporaryDirectory(prefix="vexpress-golden-") as folder:
        settings = {"bundle": bundle, "num_inference_steps": _STEPS, **SETTINGS, **flags}
        frames = [frame.image for frame in generate(clip_request(CLIP, Path(folder), **settings))]
    return np.stack([frames[index] for index in SHOWN])


def read_golden() -> np.ndarray:
    """The reference for `golden_frames`."""
    return np.stack(np.split(np.asarray(Image.open(GOLDEN)), len(SHOWN), axis=1))


def main() -> int:
    frames = golden_frames(shipped_bundle(), backend="onnxruntime", dtype="fp32")
    Image.fromarray(np.hstack(list(frames))).save(GOLDEN, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
