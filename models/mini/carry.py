"""The stage `pack`: everything spoken in one file of limited size, so that networks can be trained elsewhere.

A machine that trains from it needs neither a speech synthesiser nor the audio encoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vexpress_trt.models.mini.records import read_all
from vexpress_trt.runtime.audio_features import ROWS_PER_FRAME

FILE = "spoken.npz"
PAD = 2  # frames heard before and after each frame
_MARGIN = ROWS_PER_FRAME * PAD  # rows of silence around every utterance


@dataclass(frozen=True)
class Spoken:
    """What is heard and seen of U utterances, some of them in several recordings.

    `rows` int8 [R, D] times `scale` float32 [D]: the encoder's rows of all recordings, each between zero rows;
    `starts` int32 [U, V]: where the rows that frame 0 hears begin, of each recording (repeated where there are fewer
    than V); `openings` and `widths`: float32 [T] of each utterance.
    """

    rows: np.ndarray
    scale: np.ndarray
    starts: np.ndarray
    openings: list[np.ndarray]
    widths: list[np.ndarray]

    def speech(self) -> list[dict[str, np.ndarray]]:
        """Mouths as `plan_clip` takes them."""
        pairs = zip(self.openings, self.widths, strict=True)
        return [{"opening": opening, "width": width} for opening, width in pairs]


def pack(recordings: Sequence[np.ndarray], mouths: Sequence[np.ndarray], folder: Path, megabytes: float) -> None:
    """Writes `FILE`: rows [V, 2T, D] and mouths float32 [2, T] (opening, width) of each utterance.

    All first recordings are taken, then as many others as there is room for.
    """
    peak = np.max([np.abs(rows).max(axis=(0, 1)) for rows in recordings], axis=0).astype(np.float32)
    scale = np.maximum(peak, 1e-6) / 127
    versions = min(len(rows) for rows in recordings)
    pieces, starts, size = [], np.zeros((len(recordings), versions), np.int32), 0
    for version in range(versions):
        for number, rows in enumerate(recordings):
            if version and size * len(scale) > megabytes * 1e6:
                starts[number, version] = starts[number, number % version]
                continue
            whole = np.rint(rows[version].astype(np.float32) / scale).astype(np.int8)
            pieces.append(np.pad(whole, ((_MARGIN, _MARGIN), (0, 0))))
            starts[number, version] = size
            size += len(pieces[-1])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / FILE,
        rows=np.concatenate(pieces),
        scale=scale,
        starts=starts,
        frames=np.array([mouth.shape[1] for mouth in mouths], np.int32),
        mouths=np.concatenate(mouths, axis=1).astype(np.float16),
    )


def pack_runs(folder: Path, speech: str, hearing: str, target: Path, megabytes: float) -> None:
    """Packs the records of a runs folder."""
    records = read_all(folder / speech)
    mouths = [np.stack([record["opening"], record["width"]]) for record in records]
    pack([record["rows"] for record in read_all(folder / hearing)], mouths, target, megabytes)


def load_spoken(folder: Path) -> Spoken:
    """What `pack` wrote. Raises FileNotFoundError where it did not."""
    with np.load(folder / FILE) as file:
        ends = np.cumsum(file["frames"])[:-1]
        openings, widths = (np.split(track, ends) for track in file["mouths"].astype(np.float32))
        return Spoken(file["rows"], file["scale"], file["starts"], openings, widths)
