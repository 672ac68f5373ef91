"""`vexpress generate --server`: the same flags and the same file, made from a server's frames."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from media import write_wav

pytest.importorskip("grpc", reason="needs the client extra")

from fake_triton import FRAMES, error, fake_triton, frame, info, picture, summary
from served import Served

from vexpress_trt import cli
from vexpress_trt.runtime import GenerationRequest, write_video
from vexpress_trt.runtime.video_output import VideoWriter, choose_encoder
from vexpress_trt.serving import protocol

SIZE = {"height": 64, "width": 64}


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    (tmp_path / "face.png").write_bytes(b"a portrait")
    write_wav(tmp_path / "voice.wav", np.random.default_rng(0).normal(0, 0.1, 3200).astype(np.float32))
    paths = {"reference_image_path": "face.png", "audio_path": "voice.wav", "output_path": "out.mp4"}
    return ["generate", *(word for flag, name in paths.items() for word in (f"--{flag}", str(tmp_path / name)))]


def _clip(inputs):
    yield info(**SIZE)
    yield from (frame(index, picture(index, **SIZE)) for index in range(FRAMES))
    yield summary()


def test_the_file_is_byte_for_byte_what_these_frames_give_here(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEXPRESS_TOKEN", "secret")
    with fake_triton(_clip) as server:
        assert cli.main([*flags, "--server", server.url, "--json", "--encoder", "libx264"]) == 0
    assert server.metadata[0][protocol.AUTHORIZATION] == "Bearer secret"
    captured = capsys.readouterr()
    assert json.loads(captured.out)["output_path"] == str(tmp_path / "out.mp4")
    assert json.loads(captured.out)["encoder"] == "libx264"
    assert {"denoise", "encode"} <= json.loads(captured.out)["stage_seconds"].keys()
    assert "frames  5/5" in captured.err
    with VideoWriter(tmp_path / "here.mp4", 64, 64, 25.0, audio_path=tmp_path / "voice.wav", frames=FRAMES) as writer:
        for index in range(FRAMES):
            writer.write(picture(index, **SIZE))
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "here.mp4").read_bytes()


@pytest.mark.skipif(choose_encoder("auto", 64, 64) != "libx264", reason="the GPU here has an encoder")
def test_the_encoder_is_this_machines(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with fake_triton(_clip) as server:
        assert cli.main([*flags, "--server", server.url, "--quiet", "--encoder", "h264_nvenc"]) == 2
        assert server.gone.wait(5)
    assert "--encoder h264_nvenc does not open here" in capsys.readouterr().err


def test_a_failing_server_is_a_sentence_exit_2_and_no_file(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def dying(inputs):
        yield info(**SIZE)
        yield frame(0, picture(0, **SIZE))
        yield error("failed: the worker died.")

    with fake_triton(dying) as server:
        assert cli.main([*flags, "--server", server.url, "--quiet"]) == 2
    assert capsys.readouterr().err == "vexpress: error: the server failed: the worker died.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face.png", "voice.wav"]


def test_a_real_servers_file_is_that_of_a_local_run(
    server: Served, short_clip: GenerationRequest, local: GenerationRequest, tmp_path: Path
) -> None:
    names = ("reference_image_path", "audio_path", "kps_path", "fps", "num_inference_steps", "guidance_scale",
             "context_overlap")  # fmt: skip
    flags = [word for name in names for word in (f"--{name}", str(getattr(short_clip, name)))]
    remote = ["--output_path", str(tmp_path / "remote.mp4"), "--server", server.url, "--token", server.token]
    assert cli.main(["generate", *flags, *remote, "--quiet"]) == 0
    write_video(replace(local, output_path=tmp_path / "local.mp4"))
    assert (tmp_path / "remote.mp4").read_bytes() == (tmp_path / "local.mp4").read_bytes()


@pytest.mark.parametrize("begun", [True, False], ids=["between frames", "in the queue"])
def test_an_interrupted_run_leaves_nothing_and_stops_the_server(flags: list[str], tmp_path: Path, begun: bool) -> None:
    def stuck(inputs):
        if begun:
            yield info(**SIZE)
            yield frame(0, picture(0, **SIZE))
        time.sleep(3)

    with fake_triton(stuck) as server:
        command = [sys.executable, "-m", "vexpress_trt.cli", *flags, "--server", server.url]
        running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while not running.stderr.readline().startswith("frames" if begun else "server"):
            pass
        time.sleep(0.3)
        running.send_signal(signal.SIGINT)
        assert running.wait(3) == 130
        assert server.gone.wait(5)
        running.communicate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face.png", "voice.wav"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--backend", "onnxruntime"], "--backend is the server's own choice: leave it out with --server."),
        (["--bundle", "x.bundle"], "--bundle is the server's own choice"),
        (["--output_path", "out.avi"], ".mp4"),
    ],
)
def test_flags_that_do_not_go_with_a_server(
    flags: list[str], extra: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*flags, "--server", "localhost:9", "--quiet", *extra]) == 2
    assert words in capsys.readouterr().err


def test_without_the_extra_a_sentence_names_it(flags: list[str]) -> None:
    code = f"import sys; sys.modules['grpc'] = None\nfrom vexpress_trt import cli\nsys.exit(cli.main({flags!r}))"
    code = code.replace("'generate',", "'generate', '--server', 'localhost:9', '--quiet',")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("vexpress: error: ") and "pip install 'vexpress-trt[client]'" in done.stderr


def test_a_servers_frames_need_none_of_the_libraries_that_make_them(flags: list[str]) -> None:
    code = f"""
import sys
from vexpress_trt import cli
assert cli.main({[*flags, "--server", "localhost:9", "--quiet"]!r}) == 2
print([name for name in ("onnx", "onnxruntime", "openvino", "cv2", "torch") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr
