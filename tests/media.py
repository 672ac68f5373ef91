"""Small media files that tests make for themselves."""

from pathlib import Path

import av
import numpy as np
from PIL import Image

from vexpress_trt.runtime.tracks import save_track


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    """Float32 mono samples [S] as a WAV that decodes to exactly these."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_f32le", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None], np.float32), "flt", "mono")
        frame.sample_rate = rate
        frame.pts = 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def write_inputs(folder: Path) -> dict[str, Path]:
    """What a request for a clip names: a portrait of noise, 104x72, 0.8 s of noise to speak, and a face that rests."""
    random = np.random.default_rng(0)
    portrait, speech, track = (folder / name for name in ("ref.png", "aud.wav", "kps.npy"))
    Image.fromarray(random.integers(0, 256, (72, 104, 3), dtype=np.uint8)).save(portrait)
    write_wav(speech, random.normal(0, 0.1, 12800).astype(np.float32))
    points = np.array([[40, 40], [70, 40], [55, 60]], np.float32)
    save_track(track, np.repeat(points[None], 30, axis=0), (104, 72), 25.0)
    return {"reference_image_path": portrait, "audio_path": speech, "kps_path": track}
