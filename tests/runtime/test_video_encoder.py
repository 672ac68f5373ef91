"""Which H.264 encoder makes the video: the GPU's where it opens, else x264."""

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.runtime import video_output
from vexpress_trt.runtime.video_output import VideoWriter, choose_encoder


def test_the_gpus_encoder_is_taken_where_it_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    context = SimpleNamespace(open=lambda: opened.append(True))
    monkeypatch.setattr(video_output.av.CodecContext, "create", lambda name, mode: context)
    assert choose_encoder("auto", 96, 64) == choose_encoder("h264_nvenc", 96, 64) == "h264_nvenc"
    assert choose_encoder("libx264", 96, 64) == "libx264"
    assert len(opened) == 2
    assert (context.width, context.height, context.pix_fmt) == (96, 64, "yuv420p")


@pytest.mark.skipif(not gpu_status().reason, reason="there is a GPU")
def test_without_a_gpu_auto_is_x264_and_nvenc_is_refused() -> None:
    assert choose_encoder("auto", 96, 64) == "libx264"
    with pytest.raises(UserError, match="--encoder h264_nvenc does not open here .* leave it out"):
        choose_encoder("h264_nvenc", 96, 64)


@pytest.mark.gpu
@pytest.mark.skipif(choose_encoder("auto", 256, 256) != "h264_nvenc", reason="no GPU here has a video encoder")
@pytest.mark.parametrize("streamed", [False, True])
def test_the_gpus_video_is_whole_and_close(tmp_path: Path, make_sound, speech, streamed: bool) -> None:
    frame = np.linspace(0, 255, 256 * 256 * 3).astype(np.uint8).reshape(256, 256, 3)
    wav, path = make_sound(tmp_path / "speech.wav", speech, 16_000), tmp_path / "a.mp4"
    with ExitStack() as stack:
        target = stack.enter_context(path.open("wb")) if streamed else path
        with VideoWriter(target, 256, 256, 25, audio_path=wav, frames=20, encoder="h264_nvenc") as writer:
            for _ in range(20):
                writer.write(frame)
    with av.open(str(path)) as media:
        frames = [picture.to_ndarray(format="rgb24") for picture in media.decode(video=0)]
    assert len(frames) == 20
    assert np.abs(frames[-1].astype(int) - frame).mean() < 6
