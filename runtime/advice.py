"""Advice: one line each, for inputs and settings that work but seldom give what was hoped for.

Every function looks at measurements and returns a sentence, or None where there is nothing to say. Thresholds are set
so that good portraits and clear speech stay silent.
"""

import cv2
import numpy as np

from vexpress_trt.runtime.audio_input import AudioQuality
from vexpress_trt.runtime.faces.face import Face
from vexpress_trt.runtime.keypoints import LEFT_EYE, NOSE, RIGHT_EYE, face_size

REFERENCE_WEIGHTS = (0.9, 1.0)
AUDIO_WEIGHTS = (1.0, 3.0)
USUAL_FPS = (24.0, 30.0)
LONG_AUDIO_SECONDS = 60.0

_SHARP_SIDE = 512  # pixels of the short side at which sharpness is compared
_SHARPNESS = 0.0025  # variance of the Laplacian as a share of the picture's own: sharp ones have 0.02 and more
_ROUNDING = 20 / 12  # variance of the Laplacian of rounding to whole numbers: squared taps times 1/12
_SMALL_FACE = 0.25
_OFF_CENTRE = 0.2
_QUIET_DB = -38.0
_CLIPPED = 0.002
_NOISE_DB = 18.0
_TILT_DEGREES = 12.0
_TURN = 0.35  # difference of the logarithms of the eye-nose distance ratios: about a quarter of a head turn
_SCALE = 1.3
_SHIFT = 0.6  # eye distances
_MEMORY_SHARE = 0.8
_LONG_SECONDS = 600.0


def blurred_portrait(image: np.ndarray) -> str | None:
    """`image`: the portrait, uint8 RGB [H, W, 3]."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    scale = _SHARP_SIDE / min(grey.shape)
    if scale < 1:
        grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if cv2.Laplacian(grey, cv2.CV_32F).var() - _ROUNDING >= _SHARPNESS * grey.var():
        return None
    return "the portrait looks blurred: a sharp one gives clearly better frames"


def placed_face(face: Face, width: int, height: int) -> str | None:
    """A face that is small in its picture of this size (pixels), or far from the middle."""
    share = face.size / min(width, height)
    if share < _SMALL_FACE:
        return f"the face fills only {share:.0%} of the portrait: crop closer, to about half of it"
    centre = face.points.mean(axis=0) / (width, height)
    if np.abs(centre - 0.5).max() > _OFF_CENTRE:
        return "the face is far from the portrait's middle: crop so that it is centred, as in the training pictures"
    return None


def doubtful_audio(quality: AudioQuality) -> str | None:
    """Quiet, clipped or noisy speech."""
    if quality.clipped > _CLIPPED:
        return (
            f"{quality.clipped:.1%} of the audio is clipped: record it quieter, lip movements follow distortion badly"
        )
    if quality.level_db < _QUIET_DB:
        return (
            f"the speech is quiet ({quality.level_db:.0f} dB): if lips move too little, try --audio_attention_weight "
            "1.5 to 3.0"
        )
    if quality.noise_db < _NOISE_DB:
        return (
            f"the speech stands only {quality.noise_db:.0f} dB above the noise: clean it, or try "
            "--audio_attention_weight 1.5 to 3.0"
        )
    return None


def distant_pose(points: np.ndarray, reference: np.ndarray, strategy: str) -> str | None:
    """A track [T, 3, 2] whose head is posed or placed unlike the portrait's, [3, 2], both in output pixels."""
    if strategy not in ("no_retarget", "naive_retarget"):
        return None
    typical = np.median(points, axis=0)
    tilt = abs(_tilt(typical) - _tilt(reference))
    turn = abs(_turn(typical) - _turn(reference))
    if min(tilt, 360 - tilt) > _TILT_DEGREES or turn > _TURN:
        return (
            "the track's head is posed unlike the portrait's, which deforms faces: --retarget_strategy offset_retarget"
        )
    width, reference_width = face_size(typical)[0], face_size(reference)[0]
    scale = max(width, reference_width) / max(min(width, reference_width), 1e-6)
    shift = np.sqrt(((typical[NOSE] - reference[NOSE]) ** 2).sum()) / max(reference_width, 1e-6)
    if strategy == "no_retarget" and (scale > _SCALE or shift > _SHIFT):
        return "the track's head is not where the portrait's is: --retarget_strategy naive_retarget moves and scales it"
    return None


def unused_track(strategy: str, *, track: bool) -> str | None:
    """A key-point track beside a strategy that does not follow one."""
    if track and strategy == "fix_face":
        return "--kps_path is not used: --retarget_strategy fix_face keeps the portrait's pose"
    return None


def short_memory(needed: int, available: int, *, save_gpu_memory: bool) -> str | None:
    """A clip that needs about `needed` bytes where `available` are free."""
    if needed < _MEMORY_SHARE * available:
        return None
    remedy = (
        "fewer --context_frames or a smaller size" if save_gpu_memory else "--save_gpu_memory or fewer --context_frames"
    )
    return f"this size needs about {needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB are free: {remedy} help"


def long_run(seconds: float) -> str | None:
    """A generation that will take about this long."""
    if seconds < _LONG_SECONDS:
        return None
    remedy = "fewer --num_inference_steps (--preset fast: 5) or a smaller size shorten it"
    return f"this will take about {_span(seconds)}: {remedy}"


def unused_gpu(gpu_id: int, device: str) -> str | None:
    """A clip that runs on the CPU, where a GPU was chosen by its number and `device` is what `--device` says."""
    if gpu_id == 0:
        return None
    remedy = ": --device cuda runs it there" if device == "auto" else ""
    return f"GPU {gpu_id} is not used, this clip runs on the CPU{remedy}"


def unusual_weights(reference_weight: float, audio_weight: float) -> str | None:
    """Attention weights outside the range that the model's authors recommend."""
    for name, value, (low, high) in (
        ("reference", reference_weight, REFERENCE_WEIGHTS),
        ("audio", audio_weight, AUDIO_WEIGHTS),
    ):
        if not low <= value <= high:
            return f"--{name}_attention_weight {value:g} is outside the usual {low:g} to {high:g}"
    return None


def unusual_fps(fps: float) -> str | None:
    """A frame rate the model was not trained for."""
    low, high = USUAL_FPS
    return (
        None if low <= fps <= high else f"--fps {fps:g} is outside the usual {low:g} to {high:g}: motion may look wrong"
    )


def long_audio(seconds: float, *, upstream: bool, save_gpu_memory: bool) -> str | None:
    """Speech that the original's procedure encodes as a whole, and noise that it draws as a whole."""
    if not upstream or save_gpu_memory or seconds <= LONG_AUDIO_SECONDS:
        return None
    return (
        f"with --compat upstream {seconds:.0f} s of audio take memory that grows with its length: --save_gpu_memory "
        "keeps the clip on disk"
    )


def _tilt(points: np.ndarray) -> float:
    x, y = points[RIGHT_EYE] - points[LEFT_EYE]
    return float(np.degrees(np.arctan2(y, x)))


def _turn(points: np.ndarray) -> float:
    left, right = (np.sqrt(((points[eye] - points[NOSE]) ** 2).sum()) for eye in (LEFT_EYE, RIGHT_EYE))
    return float(np.log((left + 1e-6) / (right + 1e-6)))


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
