"""What generated clips are worth beside the truth: one `Score` for a set of clips made under one condition."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vexpress_trt.bench.quality_measures import (
    LAGS,
    colour_error,
    correlation_by_lag,
    gradient_distance,
    loudness,
    mean_ssim,
)
from vexpress_trt.models.box.held_out import HeldOutClip
from vexpress_trt.models.mini.measure import (
    correlation,
    flicker,
    mean_keypoint_error,
    mean_mouth_psnr,
    mean_psnr,
    mouth_openings,
)


@dataclass(frozen=True)
class Score:
    """Means over clips, unless said otherwise.

    `mouth_correlation` is of the mouth's opening with the truth's, `mouth_correlation_worst` of the worst clip,
    `mouth_correlation_pooled` over all frames of all clips, `audio_correlation` with the speech's loudness.
    `best_lag_frames`: the shift at which the clips' mean correlation is highest; positive is late. Distances are to the
    truth; `keypoint_error` is a share of the face's width, `flicker_ratio` is over the truth's, `colour_error` in
    Delta E.
    """

    mouth_correlation: float
    mouth_correlation_worst: float
    mouth_correlation_pooled: float
    audio_correlation: float
    best_lag_frames: int
    psnr_db: float
    mouth_psnr_db: float
    ssim: float
    gradient_distance: float
    colour_error: float
    keypoint_error: float
    flicker_ratio: float


def score(clips: Sequence[HeldOutClip], outputs: Sequence[np.ndarray]) -> Score:
    """`outputs`: what was generated for each clip, uint8 [T, 128, 128, 3]."""
    pairs = list(zip(clips, outputs, strict=True))
    true = [mouth_openings(clip.truth, clip.track) for clip in clips]
    seen = [mouth_openings(frames, clip.track) for clip, frames in pairs]
    single = [correlation(*curves) for curves in zip(true, seen, strict=True)]
    heard = [loudness(clip.samples, len(curve)) for clip, curve in zip(clips, seen, strict=True)]
    lags = np.mean([correlation_by_lag(*curves) for curves in zip(true, seen, strict=True)], axis=0)

    def mean(values) -> float:
        return float(np.mean(list(values)))

    return Score(
        mouth_correlation=mean(single),
        mouth_correlation_worst=min(single),
        mouth_correlation_pooled=correlation(np.concatenate(true), np.concatenate(seen)),
        audio_correlation=mean(correlation(*curves) for curves in zip(heard, seen, strict=True)),
        best_lag_frames=LAGS[int(np.argmax(lags))],
        psnr_db=mean(mean_psnr(frames, clip.truth) for clip, frames in pairs),
        mouth_psnr_db=mean(mean_mouth_psnr(frames, clip.truth, clip.track) for clip, frames in pairs),
        ssim=mean(mean_ssim(frames, clip.truth) for clip, frames in pairs),
        gradient_distance=mean(gradient_distance(frames, clip.truth) for clip, frames in pairs),
        colour_error=mean(colour_error(frames, clip.truth, clip.track) for clip, frames in pairs),
        keypoint_error=mean(
            mean_keypoint_error(frames, clip.track, clip.portrait, clip.portrait_keypoints) for clip, frames in pairs
        ),
        flicker_ratio=mean(flicker(frames) for frames in outputs) / mean(flicker(clip.truth) for clip in clips),
    )
