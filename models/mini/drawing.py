"""Clips drawn by processes of their own into files that all of them and the training share.

As a program it draws every n-th clip: `python -m ...drawing FOLDER CARRY FIRST STEP COUNT`.
"""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from vexpress_trt.engines.files import sha256_file
from vexpress_trt.models.mini.carry import FILE, load_spoken
from vexpress_trt.models.mini.clips import CLIP_FRAMES, plan_clip
from vexpress_trt.models.mini.measure import eye_box, mouth_box
from vexpress_trt.models.mini.pose import SIZE
from vexpress_trt.runtime.keypoints import draw_keypoints

_NICENESS = 5  # the training's own process comes first


class Sheets:
    """The shared files, for up to `count` clips of the speech in `carry`; those whose `done` is 1 are whole.

    `frames` uint8 [N, T + 1, 128, 128, 3], the portrait last; `guides` uint8 [N, T, 128, 128, 3]; `boxes` int16
    [N, T + 1, 2, 4]: first and end row, first and end column of the eyes' and the mouth's box; `heard` int32 [N, 2]:
    utterance and first frame. Their names tell count and speech, so that no clip of another training is taken.
    """

    def __init__(self, folder: Path, carry: Path, count: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        speech = sha256_file(carry / FILE)[:8]

        def shared(name: str, kind: type, *shape: int) -> np.ndarray:
            path = folder / f"{name}-{count}-{speech}"
            path.touch()
            return np.memmap(path, kind, "r+", shape=(count, *shape))

        self.frames = shared("frames", np.uint8, CLIP_FRAMES + 1, SIZE, SIZE, 3)
        self.guides = shared("guides", np.uint8, CLIP_FRAMES, SIZE, SIZE, 3)
        self.boxes = shared("boxes", np.int16, CLIP_FRAMES + 1, 2, 4)
        self.heard = shared("heard", np.int32, 2)
        self.done = shared("done", np.uint8)

    def ready(self) -> int:
        """How many clips are whole, from the first on without a gap."""
        gaps = np.flatnonzero(self.done == 0)
        return int(gaps[0]) if len(gaps) else len(self.done)

    def draw(self, number: int, speech: list[dict[str, np.ndarray]]) -> None:
        clip = plan_clip(number, speech, CLIP_FRAMES, held_out=False)
        self.frames[number, :-1] = clip.render_frames()
        self.frames[number, -1] = clip.render_portrait()
        self.guides[number] = np.stack([draw_keypoints(points, SIZE, SIZE) for points in clip.track])
        self.boxes[number] = [boxes_of(points) for points in [*clip.track, clip.portrait_keypoints]]
        self.heard[number] = clip.utterance, clip.start
        self.done[number] = 1


def boxes_of(keypoints: np.ndarray) -> list[list[int]]:
    """The boxes of eyes and mouth, see `Sheets`."""
    boxes = (eye_box(keypoints), mouth_box(keypoints))
    return [[rows.start, rows.stop, columns.start, columns.stop] for rows, columns in boxes]


class Painters:
    """Processes that draw `count` clips; those already in the folder are not drawn again."""

    def __init__(self, folder: Path, carry: Path, count: int, workers: int) -> None:
        self.sheets = Sheets(folder, carry, count)
        command = [sys.executable, "-m", __name__, str(folder), str(carry)]
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._processes = [
            subprocess.Popen([*command, str(first), str(workers), str(count)], env={**os.environ, **single})
            for first in range(workers)
        ]

    def check(self) -> None:
        """Raises RuntimeError where a process has failed."""
        for process in self._processes:
            if process.poll() not in (None, 0):
                raise RuntimeError(f"a process that draws clips ended with status {process.returncode}")

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()
        self._processes = []


def _main(folder: str, carry: str, first: str, step: str, count: str) -> None:
    cv2.setNumThreads(1)
    os.nice(_NICENESS)
    sheets, speech = Sheets(Path(folder), Path(carry), int(count)), load_spoken(Path(carry)).speech()
    for number in range(int(first), int(count), int(step)):
        if not sheets.done[number]:
            sheets.draw(number, speech)


if __name__ == "__main__":
    _main(*sys.argv[1:])
