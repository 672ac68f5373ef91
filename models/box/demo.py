"""`vexpress demo`: a person and speech that the model in the box has never met, generated and shown."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from PIL import Image

from vexpress_trt.engines.files import atomic_path, check_place
from vexpress_trt.models.box.box import SETTINGS, shipped_bundle
from vexpress_trt.models.box.clip_request import clip_request
from vexpress_trt.models.box.held_out import DEMO, HeldOutClip
from vexpress_trt.models.mini.measure import correlation, mouth_opening
from vexpress_trt.models.mini.pose import SIZE
from vexpress_trt.runtime.generation import write_video
from vexpress_trt.runtime.progress import ProgressCallback
from vexpress_trt.runtime.summary import Summary

_SHOWN = 8  # frames on the strip


@dataclass(frozen=True)
class DemoResult:
    """What was made. `mouth_correlation`: of the generated mouth's opening, read from the video, with what the speech
    asks for."""

    summary: Summary
    strip_path: str
    mouth_correlation: float

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "summary": self.summary.as_dict()}

    def as_text(self) -> str:
        return (
            f"{self.summary.as_text()}\n"
            f"wrote {self.strip_path}: the portrait, and {_SHOWN} frames of the video\n"
            f"correlation of the mouth's opening with the speech: {self.mouth_correlation:.2f}"
        )


def run_demo(
    output_path: Path,
    *,
    bundle: Path | None = None,
    on_progress: ProgressCallback | None = None,
    **flags: Any,
) -> DemoResult:
    """Generate the demo's clip into `output_path` (MP4) and a strip of its frames (PNG) beside it.

    `bundle` None takes the model in the box; `flags` are fields of the request. Raises UserError where there is no
    model, where the strip cannot be written, and for whatever `write_video` refuses.
    """
    strip = output_path.with_suffix(".png")
    check_place(strip)
    clip = HeldOutClip(DEMO)
    with tempfile.TemporaryDirectory(prefix="vexpress-demo-") as folder:
        request = clip_request(
            clip, Path(folder), bundle=bundle or shipped_bundle(), output_path=output_path, **{**SETTINGS, **flags}
        )
        request.validate()
        summary = write_video(request, on_progress=on_progress)
    frames = read_frames(output_path)
    write_strip(strip, clip.portrait, frames)
    return DemoResult(summary, str(strip), mouth_correlation(clip, frames))


def mouth_correlation(clip: HeldOutClip, frames: np.ndarray) -> float:
    """Pearson's r of the mouth's opening in frames uint8 [T, H, W, 3] with what the speech asks for; 0 if it is still.

    Frames of another size than the clip's are brought to it first.
    """
    small = [cv2.resize(frame, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for frame in frames]
    opening = [mouth_opening(frame, points) for frame, points in zip(small, clip.track, strict=True)]
    return correlation(np.array(opening), np.asarray(clip.driven.opening))


def read_frames(video: Path) -> np.ndarray:
    """All frames of a video, uint8 RGB [T, H, W, 3]."""
    with av.open(str(video)) as media:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in media.decode(video=0)])


def write_strip(path: Path, portrait: np.ndarray, frames: np.ndarray) -> None:
    """A PNG of the portrait and of frames from the beginning to the end, side by side."""
    height, width = frames.shape[1:3]
    shown = np.linspace(0, len(frames) - 1, _SHOWN).round().astype(int)
    first = cv2.resize(portrait, (width, height), interpolation=cv2.INTER_AREA)
    with atomic_path(path) as temporary:
        Image.fromarray(np.hstack([first, *frames[shown]])).save(temporary, format="PNG")
