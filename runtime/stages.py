"""The stages around the denoising loop, each one graph: portrait, speech, key points, decoder."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import numpy as np

from vexpress_trt.engines.call_sizes import CHUNK
from vexpress_trt.engines.engine import Engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.engine_loader import EngineLoader
from vexpress_trt.runtime.keypoints import draw_keypoints
from vexpress_trt.runtime.summary import Stopwatch
from vexpress_trt.runtime.waveform import WaveformStatistics


def encode_portrait(engines: EngineLoader, image: np.ndarray) -> dict[str, np.ndarray]:
    """The portrait's keys and values for every attention block, computed once per portrait.

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


def encode_audio(engines: EngineLoader, waveform: np.ndarray, statistics: WaveformStatistics) -> np.ndarray:
    """The audio encoder's last hidden state, float32 [T, D], of a part of a clip: normalised float32 samples [S]."""
    with engines.use("audio_encoder") as encoder:
        whole = {"window_mean": statistics.window_mean, "window_factor": statistics.window_factor}
        taken = {tensor.name for tensor in encoder.spec.inputs}
        encoder.bind(**{name: array for name, array in whole.items() if name in taken})
        hidden = encoder.run(waveform=waveform[None])["hidden"][0].copy()
    require_finite(hidden, "audio_encoder", "hidden")
    return hidden


def project_audio(
    engines: EngineLoader,
    windows: Callable[[int, int], np.ndarray],
    frames: range,
    allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray],
) -> np.ndarray:
    """Audio tokens of these frames, [N, tokens, C].

    `windows(start, stop)` gives the rows of frames start to stop - 1; `allocate(shape, dtype)` makes the result.
    """
    tokens: np.ndarray | None = None
    with engines.use("audio_projection") as projection:
        for start in range(frames.start, frames.stop, CHUNK):
            stop = min(start + CHUNK, frames.stop)
            chunk = projection.run(windows=_filled(windows(start, stop)))["tokens"][: stop - start]
            if tokens is None:
                tokens = allocate((len(frames), *chunk.shape[1:]), chunk.dtype)
            tokens[start - frames.start : stop - frames.start] = chunk
            require_finite(chunk, "audio_projection", f"tokens of frames {start}-{stop - 1}")
    assert tokens is not None
    return tokens


class KeypointFeatures:
    """The guider's feature of each frame, drawn and computed when a window needs it.

    Neighbouring windows and all steps share frames, so features of the frames in use are remembered, in up to `budget`
    bytes that are allocated once; beyond that they are computed again, which costs under 1 % of a denoiser call at full
    size.
    """

    def __init__(
        self, guider: Engine, points: np.ndarray, width: int, height: int, *, live_frames: int, budget: int
    ) -> None:
        """`points`: float [L, 3, 2] in output pixels, the frames' key points; up to `live_frames` neighbouring ones are
        in use at a time."""
        self._guider = guider
        self._points = points
        self._size = (width, height)
        self._live_frames = live_frames
        self._budget = budget
        self._rgb = np.empty((CHUNK, 3, height, width), np.float32)
        self._memory: np.ndarray | None = None  # [slots, C0, h, w]; frame f lies in slot f modulo their number
        self._held: list[int] = []  # which frame is in each slot

    def window(self, start: int, out: np.ndarray) -> None:
        """Write the features of frames start to start + F - 1 to `out` [F, C0, h, w]."""
        missing = []
        for row, frame in enumerate(range(start, start + len(out))):
            slot = frame % len(self._held) if self._held else 0
            if self._held and self._held[slot] == frame:
                out[row] = self._memory[slot]
            else:
                missing.append(row)
        for first in range(0, len(missing), CHUNK):
            rows = missing[first : first + CHUNK]
            for row, feature in zip(rows, self._compute([start + row for row in rows]), strict=False):
                out[row] = feature
                self._remember(start + row, feature)

    def _compute(self, frames: list[int]) -> np.ndarray:
        """[CHUNK, C0, h, w], of which those behind the frames' are repetitions; valid until the next call."""
        for row, frame in enumerate(frames):
            rgb = draw_keypoints(self._points[frame], *self._size).transpose(2, 0, 1)
            np.divide(rgb, np.float32(255.0), out=self._rgb[row])
            del rgb  # before the next one is drawn
        self._rgb[len(frames) :] = self._rgb[len(frames) - 1]
        features = self._guider.run(rgb=self._rgb)["feature"]
        require_finite(features, "kps_guider", f"feature of frames {frames[0]}-{frames[-1]}")
        return features

    def _remember(self, frame: int, feature: np.ndarray) -> None:
        if self._memory is None:
            slots = min(self._budget // feature.nbytes, self._live_frames)
            self._memory, self._held = np.empty((slots, *feature.shape), feature.dtype), [-1] * slots
        if self._held:
            slot = frame % len(self._held)
            self._memory[slot], self._held[slot] = feature, frame


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
        raise nonfinite(graph, what)


def nonfinite(graph: str, what: str) -> UserError:
    """The sentence for a network whose result is not finite."""
    return UserError(
        f"{graph} produced non-finite values ({what}): the weights or the precision are unsuited, try --dtype fp32."
    )
