"""Speech in: any sound file, or the sound of a video, as 16 kHz mono float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.resample import sinc_resample

SAMPLE_RATE = 16_000
SUFFIXES = (".wav", ".mp3", ".m4a", ".aac", ".flac", ".opus", ".ogg", ".mp4", ".mov", ".mkv", ".webm")
MAX_FILE_BYTES = 4 << 30
MAX_SECONDS = 2 * 3600.0
SILENCE = 1e-4  # a peak below this is no speech: -80 dB of full scale
_MEASURED_FRAME = SAMPLE_RATE // 50


@dataclass(frozen=True, eq=False)
class Audio:
    """Decoded speech: `samples` float32 [S] in [-1, 1] at 16 kHz, and how the file held it."""

    samples: np.ndarray
    source_rate: int
    channels: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True)
class AudioQuality:
    """What can be heard of a recording's quality.

    `level_db`: RMS of the louder half of its 20 ms pieces, in dB of full scale. `clipped`: share of samples at full
    scale. `noise_db`: how far the quietest tenth of the pieces lies below the loudest tenth, in dB.
    """

    level_db: float
    clipped: float
    noise_db: float


def decode_audio(path: Path, *, upstream: bool = False) -> Audio:
    """Decode to 16 kHz mono.

    `upstream` resamples with the original's filter and takes the mean of the channels after that. Raises UserError when
    the file is missing, empty, too large, too long, damaged, of an unknown kind, without sound, or silent.
    """
    path = Path(path)
    _check_file(path)
    with opened(path) as media:
        stream = media.streams.audio[0]
        rate, channels = stream.rate, stream.channels
        if upstream:
            planes = np.concatenate(list(_limited(path, _planes(media, rate), rate)), axis=1)
            samples = sinc_resample(planes, rate, SAMPLE_RATE).mean(axis=0)
        else:
            samples = np.concatenate(list(_limited(path, _resampled(media), SAMPLE_RATE)), axis=1)[0]
    if not samples.size:
        raise UserError(f"{path} holds no sound: choose another file")
    if float(np.abs(samples).max()) < SILENCE:
        raise UserError(f"{path} is silent: choose a file with speech")
    return Audio(np.ascontiguousarray(samples, np.float32), rate, channels)


def measure(samples: np.ndarray) -> AudioQuality:
    """The quality of 16 kHz float32 samples [S]; shorter than 20 ms counts as one piece."""
    pieces = max(1, len(samples) // _MEASURED_FRAME)
    whole = samples[: pieces * _MEASURED_FRAME].reshape(pieces, -1).astype(np.float64)
    rms = np.sort(np.sqrt((whole**2).mean(axis=1)))
    tenth = max(1, pieces // 10)
    quiet, loud = rms[:tenth].mean(), rms[-tenth:].mean()
    level = np.sqrt((rms[pieces // 2 :] ** 2).mean())
    return AudioQuality(
        level_db=20 * float(np.log10(level + 1e-9)),
        clipped=float((np.abs(samples) >= 0.999).mean()),
        noise_db=20 * float(np.log10((loud + 1e-9) / (quiet + 1e-9))),
    )


@contextmanager
def opened(path: Path) -> Iterator[av.container.InputContainer]:
    """A sound file opened for decoding. Raises UserError where it cannot be read or has no audio stream, also when that
    only shows while decoding."""
    try:
        with av.open(str(path)) as media:
            if not media.streams.audio:
                raise UserError(f"{path} has no audio stream: choose a file with speech")
            yield media
    except av.FFmpegError as problem:
        raise UserError(f"{path} is not readable as sound ({problem.strerror}): convert it or choose another") from None


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"the audio {path} does not exist or is not a file: check --audio_path")
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: the suffix {path.suffix or '(none)'} is none of {', '.join(SUFFIXES)}")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path} is empty: choose another file")
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"{path} has {size / 2**30:.1f} GiB, over the limit of {MAX_FILE_BYTES >> 30} GiB: cut it first"
        )


def _resampled(media: av.container.InputContainer) -> Iterator[np.ndarray]:
    resampler = av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
    for frame in media.decode(audio=0):
        for piece in resampler.resample(frame):
            yield piece.to_ndarray().reshape(1, -1)
    for piece in resampler.resample(None):
        yield piece.to_ndarray().reshape(1, -1)


def _planes(media: av.container.InputContainer, rate: int) -> Iterator[np.ndarray]:
    """All channels at the file's own rate, float32 [channels, n]."""
    layout = media.streams.audio[0].layout.name
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    for frame in media.decode(audio=0):
        for piece in resampler.resample(frame):
            yield piece.to_ndarray()
    for piece in resampler.resample(None):
        yield piece.to_ndarray()


def _limited(path: Path, blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """The same blocks, refused when they become too long: a file's own word on its length is not trusted."""
    total = 0
    for block in blocks:
        total += block.shape[1]
        if total > MAX_SECONDS * rate:
            raise UserError(f"{path} lasts over {MAX_SECONDS / 3600:g} hours: cut it first")
        yield block
    if not total:
        yield np.zeros((1, 0), np.float32)
