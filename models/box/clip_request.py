"""A held-out clip as the runtime takes it: files in a folder, and the request that names them."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vexpress_trt.models.box.held_out import HeldOutClip
from vexpress_trt.models.mini.drive import FPS
from vexpress_trt.models.mini.pose import SIZE
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.runtime.tracks import save_track


def clip_request(
    clip: HeldOutClip,
    folder: Path,
    *,
    portrait: np.ndarray | None = None,
    speech: Path | None = None,
    **flags: Any,
) -> GenerationRequest:
    """The request for `clip`, with another portrait (uint8 [128, 128, 3]) or other speech where these are given.

    Portrait and track are written to `folder`; `flags` are further fields of the request.
    """
    picture, track = folder / f"{clip.number}.png", folder / f"{clip.number}.npy"
    Image.fromarray(clip.portrait if portrait is None else portrait).save(picture)
    save_track(track, clip.track, (SIZE, SIZE), float(FPS))
    return GenerationRequest(
        **{
            "reference_image_path": picture,
            "audio_path": speech or clip.speech,
            "kps_path": track,
            "fps": float(FPS),
            "portrait_cache": "off",
            **flags,
        }
    )
