"""A tiny job for the measurements: inputs that every contender takes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from media import write_wav
from PIL import Image

from vexpress_trt.runtime.tracks import save_track


@dataclass(frozen=True)
class JobFiles:
    """Portrait, half a second of noise (at 25 frames/s one window of 8 frames and 4 more), and a track for 104x72."""

    portrait: Path
    speech: Path
    track: Path

    @property
    def flags(self) -> list[str]:
        paths = {"reference_image_path": self.portrait, "audio_path": self.speech, "kps_path": self.track}
        return [word for name, path in paths.items() for word in (f"--{name}", str(path))]


@pytest.fixture(scope="session")
def job_files(tmp_path_factory: pytest.TempPathFactory) -> JobFiles:
    folder = tmp_path_factory.mktemp("job")
    random = np.random.default_rng(3)
    portrait = folder / "portrait.png"
    Image.fromarray(random.integers(0, 256, (144, 208, 3), dtype=np.uint8)).save(portrait)
    speech = write_wav(folder / "speech.wav", random.normal(0, 0.1, 8000).astype(np.float32))
    points = random.normal(0, 2, (12, 3, 2)) + [[[35, 30], [65, 30], [50, 50]]]
    save_track(folder / "track.npy", points.astype(np.float32))
    return JobFiles(portrait, speech, folder / "track.npy")
