"""The stages around the denoising loop, each one graph: portrait, speech, key points, decoder."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import numpy as np

from vexpress_trt.engines.engine import Engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.audio_features import AudioFeatures
from vexpress_trt.runtime.engine_loader import EngineLoader
from vexpress_trt.runtime.keypoints import draw_keypoints
from vexpress_trt.runtime.summary import Stopwatch

CHUNK = 8  # frames per call of the projection and the guider, always: engines build for one shape


def encode_portrait(engines: EngineLoader, image: np.ndarray) -> dict[str, np.ndarray]:
    """The portrait's keys and values for every attention block, computed once per clip.

    `image`: float32 [1, 3, H, W] in [-1, 1]. Returns `key_XX` and `value_XX`, each [1, heads, tokens, dim].
    """
    with engines.use("vae_encoder") as encoder:
        latent = encoder.run(image=image)["latent"] * np.float32(engines.bundle.manifest.model.latent_scaling)
    require_finite(latent, "vae_encoder", "latent")
    with engines.use("reference") as reference:
        outputs = {name: array.copy() for name, array in reference.run(latent=latent).items()}
    for name, array in outputs.items():
        require_finite(array, "reference", name)
    return outputs


def encode_audio(engines: EngineLoader, waveform: np.ndarray) -> np.ndarray:
    """The audio encoder's last hidden state, float32 [T, D], of a normalised float32 waveform [S]."""
    with engines.use("audio_encoder") as encoder:
        hidden = encoder.run(waveform=waveform[None])["hidden"][0].copy()
    require_finite(hidden, "audio_encoder", "hidden")
    return hidden


def project_audio(
    engines: EngineLoader,
    features: AudioFeatures,
    frames: int,
    allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray],
) -> np.ndarray:
    """Audio tokens of every frame, [frames, tokens, C]; `allocate(shape, dtype)` makes the array they are kept in."""
    tokens: np.ndarray | None = None
    with engines.use("audio_projection") as projection:
        for start in range(0, frames, CHUNK):
            stop = min(start + CHUNK, frames)
            chunk = projection.run(windows=_filled(features.windows(start, stop)))["tokens"][: stop - start]
            if tokens is None:
                tokens = allocate((frames, *chunk.shape[1:]), chunk.dtype)
            tokens[start:stop] = chunk
            require_finite(chunk, "audio_projection", f"tokens of frames {start}-{stop - 1}")
    assert tokens is not None
    return tokens


class KeypointFeatures:
    """The guider's feature of each frame, drawn and computed when a window needs it.

    Neighbouring windows and all steps share frames, so features are remembered up to `budget` bytes; beyond that they
    are computed again, which costs under 1 % of a denoiser call at full size.
    """

    def __init__(self, guider: Engine, points: np.ndarray, width: int, height: int, budget: int) -> None:
        """`points`: float [L, 3, 2] in output pixels, the frames' key points."""
        self._guider = guider
        self._points = points
        self._size = (width, height)
        self._budget = budget
        self._known: OrderedDict[int, np.ndarray] = OrderedDict()

    def window(self, start: int, stop: int) -> np.ndarray:
        """Features of frames start to stop - 1, [F, C0, h, w]."""
        window: dict[int, np.ndarray] = {}
        for frame in range(start, stop):
            if frame in self._known:
                self._known.move_to_end(frame)
                window[frame] = self._known[frame]
        missing = [frame for frame in range(start, stop) if frame not in window]
        for first in range(0, len(missing), CHUNK):
            chunk = missing[first : first + CHUNK]
            window.update(zip(chunk, self._compute(chunk), strict=True))
        for frame in missing:
            self._remember(frame, window[frame])
        return np.stack([window[frame] for frame in range(start, stop)])

    def _compute(self, frames: list[int]) -> Iterable[np.ndarray]:
        width, height = self._size
        drawings = np.stack([draw_keypoints(self._points[frame], width, height) for frame in frames])
        rgb = np.ascontiguousarray(drawings.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255.0)
        features = self._guider.run(rgb=_filled(rgb))["feature"][: len(frames)]
        require_finite(features, "kps_guider", f"feature of frames {frames[0]}-{frames[-1]}")
        return [feature.copy() for feature in features]  # single copies, so that forgetting one frees it

    def _remember(self, frame: int, feature: np.ndarray) -> None:
        self._known[frame] = feature
        while len(self._known) * feature.nbytes > self._budget and self._known:
            self._known.popitem(last=False)


def decode(engines: EngineLoader, latents: Iterable[tuple[int, np.ndarray]], watch: Stopwatch) -> Iterator[np.ndarray]:
    """Images of final latents (frame, float32 [4, h, w]), one by one: float32 [H, W, 3] in [0, 1], not yet filtered.

    The decoder is loaded when the first latent is there: by then a spooling workspace has let go
    of what made the latents.
    """
    latents = iter(latents)
    first = next(latents, None)
    if first is None:
        return
    scaling = np.float32(engines.bundle.manifest.model.latent_scaling)
    with engines.use("vae_decoder") as decoder:
        for frame, latent in chain([first], latents):
            with watch.stage("decode"):
                image = decoder.run(latents=(latent / scaling)[None])["image"][0]
                require_finite(image, "vae_decoder", f"image of frame {frame}")
                image = np.clip(image.transpose(1, 2, 0) * np.float32(0.5) + np.float32(0.5), 0.0, 1.0)
            yield np.ascontiguousarray(image, dtype=np.float32)


def _filled(batch: np.ndarray) -> np.ndarray:
    """The batch [N, ...] with its last entry repeated up to CHUNK entries."""
    missing = CHUNK - len(batch)
    return batch if missing == 0 else np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])


def require_finite(array: np.ndarray, graph: str, what: str) -> None:
    """Stop at the first non-finite value. Raises UserError that names graph and tensor."""
    if not np.isfinite(array.astype(np.float32, copy=False)).all():
        raise UserError(
            f"{graph} produced non-finite values ({what}): the weights or the precision are unsuited, try --dtype fp32."
        )
