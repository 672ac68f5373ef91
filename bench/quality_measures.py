"""How alike two clips are to the eye and to the ear's expectation; all on frames uint8 RGB [T, H, W, 3]."""

import cv2
import numpy as np

from vexpress_trt.models.mini.drive import SAMPLE_RATE
from vexpress_trt.models.mini.measure import correlation
from vexpress_trt.models.mini.pose import head_frame

LAGS = range(-4, 5)  # frames
_SCALES = 3
# Constants of SSIM (Wang et al. 2004) and of gradient similarity (Xue et al. 2014), for levels of 0 to 255.
_SSIM_MEAN, _SSIM_SPREAD, _GRADIENT = (0.01 * 255) ** 2, (0.03 * 255) ** 2, 170.0
_LOUD_RANGE = 40.0  # dB below the clip's loudest frame at which it counts as silent
# Where a colour of the person is taken, in eye distances right and down from between the eyes.
_PLACES = {"skin": ((-0.5, 0.72), (0.5, 0.72)), "hair": ((-0.35, -1.22), (0.35, -1.22)), "clothes": ((0.0, 2.6),)}
_SPOT = 2  # pixels around such a place


def correlation_by_lag(truth: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """r of the inner part of `truth` [T] with `seen` shifted by each of `LAGS`; positive: what is seen comes late."""
    edge = max(LAGS)
    inner = truth[edge : len(truth) - edge]
    return np.array([correlation(inner, seen[edge + lag : len(seen) - edge + lag]) for lag in LAGS])


def loudness(samples: np.ndarray, frames: int) -> np.ndarray:
    """The envelope of a waveform of 16 kHz: level of 80 ms around each frame, 0 (silent) to 1, [frames]."""
    centres = (np.arange(frames) + 0.5) * len(samples) / frames
    half = SAMPLE_RATE // 25
    window = np.hanning(2 * half) ** 2
    padded = np.pad(samples.astype(np.float64), half)
    power = np.array([window @ padded[int(centre) : int(centre) + 2 * half] ** 2 for centre in centres])
    level = 10 * np.log10(power / power.max() + 1e-12)
    return np.clip(1 + level / _LOUD_RANGE, 0, 1)


def mean_ssim(frames: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity of the grey pictures, mean over frames and three scales; 1 is the same."""
    return float(np.mean([_over_scales(_ssim, *pair) for pair in zip(frames, truth, strict=True)]))


def gradient_distance(frames: np.ndarray, truth: np.ndarray) -> float:
    """How differently edges run: 1 minus the similarity of gradients, mean over frames and three scales; 0 is the same.

    It stands in for a learned perceptual distance, which would need a network's weights; it is not LPIPS.
    """
    return float(np.mean([_over_scales(_gradient_distance, *pair) for pair in zip(frames, truth, strict=True)]))


def colour_error(frames: np.ndarray, truth: np.ndarray, track: np.ndarray) -> float:
    """How far skin, hair and clothes are from their true colours: mean distance in CIE Lab (Delta E 1976)."""
    errors = []
    for frame, true, points in zip(_lab(frames), _lab(truth), track, strict=True):
        head = head_frame(points)
        for places in _PLACES.values():
            at = [_around(head.to_image(np.array(place)), frame.shape) for place in places]
            seen, wanted = (np.mean([image[box].mean(axis=(0, 1)) for box in at], axis=0) for image in (frame, true))
            errors.append(float(np.linalg.norm(seen - wanted)))
    return float(np.mean(errors))


def _lab(frames: np.ndarray) -> np.ndarray:
    return np.stack([cv2.cvtColor(frame.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for frame in frames])


def _around(point: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, slice]:
    height, width = shape[:2]
    column = round(min(max(float(point[0]), _SPOT), width - 1 - _SPOT))
    row = round(min(max(float(point[1]), _SPOT), height - 1 - _SPOT))
    return slice(row - _SPOT, row + _SPOT + 1), slice(column - _SPOT, column + _SPOT + 1)


def _over_scales(measure, first: np.ndarray, second: np.ndarray) -> float:
    values = []
    a, b = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) for image in (first, second))
    for _ in range(_SCALES):
        values.append(measure(a, b))
        a, b = (cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for image in (a, b))
    return float(np.mean(values))


def _ssim(a: np.ndarray, b: np.ndarray) -> float:
    def blur(image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, (11, 11), 1.5)

    mean_a, mean_b = blur(a), blur(b)
    spread_a, spread_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    together = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _SSIM_MEAN) / (mean_a**2 + mean_b**2 + _SSIM_MEAN)
    structure = (2 * together + _SSIM_SPREAD) / (spread_a + spread_b + _SSIM_SPREAD)
    return float((luminance * structure).mean())


def _gradient_distance(a: np.ndarray, b: np.ndarray) -> float:
    def gradient(image: np.ndarray) -> np.ndarray:
        return np.hypot(cv2.Scharr(image, cv2.CV_32F, 1, 0) / 16, cv2.Scharr(image, cv2.CV_32F, 0, 1) / 16)

    at, to = gradient(a), gradient(b)
    return float(1 - ((2 * at * to + _GRADIENT) / (at**2 + to**2 + _GRADIENT)).mean())
