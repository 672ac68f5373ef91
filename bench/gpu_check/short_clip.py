"""A short clip of the model in the box, and its frames: what whole clips on a GPU are compared by."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vexpress_trt.runtime.request import GenerationRequest

# Peak signal to noise of all frames together, against the CPU's in FP32, below which they are wrong.
FLOOR_DB = {"fp32": 45.0, "fp16": 30.0}


def short_request(folder: Path, seconds: float, *, bundle: Path, steps: int) -> "GenerationRequest":
    """A held-out clip of so many seconds; its files are written to `folder`."""
    from vexpress_trt.bench.speech import write_speech
    from vexpress_trt.models.box.box import SETTINGS
    from vexpress_trt.models.box.clip_request import clip_request
    from vexpress_trt.models.box.held_out import DEMO, HeldOutClip

    clip = HeldOutClip(DEMO)
    speech = write_speech(clip.speech, seconds, folder / "speech.wav")
    given = {"bundle": bundle, "num_inference_steps": steps, **SETTINGS}
    return clip_request(clip, folder, speech=speech, **given)


def frames_of(request: "GenerationRequest") -> tuple[np.ndarray, dict[str, Any]]:
    """All frames, uint8 [N, H, W, 3], and what the summary says of speed."""
    from vexpress_trt.runtime import generate

    generation = generate(request)
    frames = np.stack([frame.image for frame in generation])
    summary = generation.summary
    about = {
        "backend": summary.backend,
        "frames": summary.frames,
        "seconds": summary.total_seconds,
        "seconds_to_first_frame": summary.time_to_first_frame,
        "stages": {name: round(seconds, 2) for name, seconds in summary.stage_seconds.items()},
    }
    return frames, about


def likeness(frames: np.ndarray, expected: np.ndarray) -> float:
    """Their peak signal to noise in dB, 0 where there are more or fewer of them."""
    from vexpress_trt.models.mini.measure import psnr

    return psnr(frames, expected) if frames.shape == expected.shape else 0.0
