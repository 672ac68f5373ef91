"""The stage `encoder`: a wav2vec2-shaped encoder that learns to hear what the drawn mouth does.

The official encoder comes from speech recognition. This one is trained on the mouth's opening and width, which is all
that the drawn world takes from sound; a linear head, dropped afterwards, reads both off its rows.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vexpress_trt.export.nets.library import AudioEncoder
from vexpress_trt.models.mini.drive import SAMPLE_RATE
from vexpress_trt.models.mini.records import read_all, write_missing
from vexpress_trt.models.mini.sizes import MINI
from vexpress_trt.models.mini.speech import worsen
from vexpress_trt.models.mini.spoken import HELD_OUT_FOLDER, TRAINING_FOLDER, samples_of
from vexpress_trt.models.mini.training import Plan, Run, averaged_weights
from vexpress_trt.runtime.audio_features import ROWS_PER_FRAME

PLAN = Plan(rate=2e-3, steps=700, average=0.98)
HEARING_FOLDER = "hearing"
VERSIONS = 3  # of each training utterance, the first as recorded and the others worsened
_BATCH = 6
_SECONDS = (3, 9)
_UNSURE = ("activation_dropout", "attention_dropout", "feat_proj_dropout", "hidden_dropout", "final_dropout")


def audio_config() -> dict:
    """The encoder's `config.json`: the official one at small sizes, without dropout."""
    return {**MINI.audio_json(), **dict.fromkeys(_UNSURE, 0.0)}


class Listener(nn.Module):
    """The encoder, and the head that reads opening and width off its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AudioEncoder(audio_config())
        self.head = nn.Linear(MINI.audio_hidden, 2)

    def rows(self, waveforms: Tensor, frames: int) -> Tensor:
        """waveforms: [N, S], normalised -> two rows per frame [N, 2 * frames, D], as the runtime makes them."""
        hidden = self.encoder(waveforms).transpose(1, 2)
        return F.interpolate(hidden, size=ROWS_PER_FRAME * frames, mode="linear").transpose(1, 2)

    def official_state(self) -> dict[str, Tensor]:
        """The encoder's weights under the names of the bare model; its positional convolution has a plain weight."""
        return {name.removeprefix("model."): tensor.clone() for name, tensor in self.encoder.state_dict().items()}


def train_listener(folder: Path, plan: Plan, minutes: float) -> bool:
    torch.manual_seed(2)
    training, held_out = read_all(folder / TRAINING_FOLDER), read_all(folder / HELD_OUT_FOLDER)
    model = Listener()
    run = Run(folder / "encoder", model, plan)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        return _batch(training, np.random.default_rng([2, step]))

    def loss(waveforms: Tensor, targets: Tensor) -> Tensor:
        error = model.head(model.rows(waveforms, targets.shape[1] // ROWS_PER_FRAME)) - targets
        opening, width = error.square().mean(dim=(0, 1))
        return torch.stack([opening + 0.5 * width, opening, width])

    def measure() -> dict[str, float]:
        heard = [_heard(model, record) for record in held_out]
        pairs = [
            (np.concatenate([part[:, i] for part in heard]), np.concatenate([record[name] for record in held_out]))
            for i, name in enumerate(("opening", "width"))
        ]
        opening, width = (float(np.corrcoef(*pair)[0, 1]) for pair in pairs)
        return {"corr_opening": opening, "corr_width": width}

    return run.train(draw, loss, ("loss", "opening", "width"), measure, 60 * minutes)


def write_hearing(folder: Path) -> None:
    """What the trained encoder makes of every training utterance: records with `rows` float16 [versions, 2T, D]."""
    listener = load_listener(folder)
    records = read_all(folder / TRAINING_FOLDER)

    def hear(number: int) -> dict[str, np.ndarray]:
        samples = samples_of(records[number])
        rng = np.random.default_rng([3, number])
        versions = [samples, *(worsen(samples, rng) for _ in range(VERSIONS - 1))]
        frames = len(records[number]["opening"])
        return {"rows": np.stack([rows_of(listener, version, frames) for version in versions]).astype(np.float16)}

    write_missing(folder / HEARING_FOLDER, len(records), hear)


def normalise(samples: np.ndarray) -> np.ndarray:
    """The waveform float32 [S] with zero mean and unit variance, as wav2vec2's feature extractor makes it."""
    centred = samples - samples.mean(dtype=np.float64)
    return (centred / np.sqrt(centred.var() + 1e-7)).astype(np.float32)


def rows_of(listener: Listener, samples: np.ndarray, frames: int) -> np.ndarray:
    """The rows float32 [2 * frames, D] of a whole utterance float32 [S]."""
    with torch.no_grad():
        return listener.rows(torch.from_numpy(normalise(samples))[None], frames)[0].numpy()


def windows_of(rows: np.ndarray, frames: np.ndarray, pad: int = 2) -> np.ndarray:
    """What each of the `frames` [N] hears: rows [N, 2 (2 pad + 1), D]; beyond the ends of the sound they are zero."""
    padded = np.pad(rows, ((ROWS_PER_FRAME * pad, ROWS_PER_FRAME * pad), (0, 0)))
    index = ROWS_PER_FRAME * np.asarray(frames)[:, None] + np.arange(ROWS_PER_FRAME * (2 * pad + 1))
    return padded[index]


def load_listener(folder: Path) -> Listener:
    """The trained encoder below the runs' folder, averaged weights, for use without gradients."""
    listener = Listener()
    listener.load_state_dict(averaged_weights(folder / "encoder"))
    return listener.eval().requires_grad_(False)


def _batch(records: list[dict[str, np.ndarray]], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Parts of utterances of one length: normalised waveforms [N, S], and targets [N, 2T, 2] at the rows' times."""
    frames = int(rng.integers(*_SECONDS)) * 25
    per_frame = SAMPLE_RATE // 25
    waveforms, targets = [], []
    while len(waveforms) < _BATCH:
        record = records[rng.integers(len(records))]
        start = int(rng.integers(max(1, len(record["opening"]) - frames)))
        samples = samples_of(record)[start * per_frame : (start + frames) * per_frame]
        if len(samples) < frames * per_frame:
            continue
        waveforms.append(normalise(worsen(samples, rng)))
        targets.append(_at_rows(record, start, frames))
    return torch.from_numpy(np.stack(waveforms)), torch.from_numpy(np.stack(targets))


def _at_rows(record: Mapping[str, np.ndarray], start: int, frames: int) -> np.ndarray:
    """Opening and width at the times of the rows of some frames, float32 [2 * frames, 2]."""
    times = start + (np.arange(ROWS_PER_FRAME * frames) + 0.5) / ROWS_PER_FRAME - 0.5
    tracks = [record[name] for name in ("opening", "width")]
    return np.stack([np.interp(times, np.arange(len(track)), track) for track in tracks], axis=1).astype(np.float32)


def _heard(model: Listener, record: Mapping[str, np.ndarray]) -> np.ndarray:
    """Opening and width of each frame as the encoder hears them, [T, 2]."""
    frames = len(record["opening"])
    rows = model.head(model.rows(torch.from_numpy(normalise(samples_of(record)))[None], frames))[0]
    return rows.unflatten(0, (frames, ROWS_PER_FRAME)).mean(dim=1).numpy()
