"""The held-out speech, spoken once by espeak-ng: `python -m vexpress_trt.models.box.record`.

The files are part of the package, so that nobody who measures needs espeak-ng, and versions of it do not matter.
"""

import sys
from pathlib import Path

import av
import numpy as np

from vexpress_trt.models.box.held_out import CLIP_FRAMES, CLIPS, DEMO, DEMO_FRAMES, speech_path
from vexpress_trt.models.mini.drive import FPS, SAMPLE_RATE, drive_mouth
from vexpress_trt.models.mini.speech import plan_utterance, speak

_FIRST_UTTERANCE = 1000  # training measures itself on the first ones
_PER_FRAME = SAMPLE_RATE // FPS


def record(number: int, frames: int) -> None:
    """Speak and cut clip `number`: the part of its utterance in which the mouth moves most."""
    samples = speak(plan_utterance(_FIRST_UTTERANCE + number, held_out=True))
    opening = drive_mouth(samples).opening
    starts = range(0, len(opening) - frames + 1, FPS // 5)
    start = max(starts, key=lambda begin: float(opening[begin : begin + frames].std()))
    write_flac(speech_path(number), samples[start * _PER_FRAME : (start + frames) * _PER_FRAME])


def write_flac(path: Path, samples: np.ndarray) -> None:
    """Write float32 [S] of 16 kHz in 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = np.rint(np.clip(samples, -1, 1) * 32767).astype(np.int16)
    with av.open(str(path), "w", format="flac") as media:
        stream = media.add_stream("flac", rate=SAMPLE_RATE, layout="mono", options={"compression_level": "12"})
        frame = av.AudioFrame.from_ndarray(whole[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            media.mux(packet)


def main() -> int:
    for number in range(CLIPS):
        record(number, CLIP_FRAMES)
    record(DEMO, DEMO_FRAMES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
