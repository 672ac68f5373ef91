"""The real server: the frames of a local run, and every way a request can end."""

import contextlib
import io
import os
import signal
import sys
import threading
import time
import urllib.error
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from served import Served, left_of, served

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime import GenerationRequest, generate
from vexpress_trt.runtime.video_output import choose_encoder
from vexpress_trt.serving import command
from vexpress_trt.serving.client import ServerBusy, ServerError

RUNNING, WAITING = 'vexpress_requests{state="running"}', 'vexpress_requests{state="waiting"}'
CONTROLLED = ["/v2/systemsharedmemory/status", "/v2/repository/index"]


def ended(outcome: str) -> str:
    return f'vexpress_requests_ended{{outcome="{outcome}"}}'


def files_of(request: GenerationRequest) -> dict[str, bytes]:
    return {"portrait": request.reference_image_path.read_bytes(), "audio": request.audio_path.read_bytes()}


@contextlib.contextmanager
def in_progress(server: Served, request: GenerationRequest) -> Iterator[object]:
    """A clip that the server works on; the client goes away at the end of the block."""
    with server.client() as client:
        generation = client.generate(request)
        try:
            yield generation
        finally:
            generation.cancel()


def test_frames_are_those_of_a_local_run_bit_for_bit(
    server: Served, short_clip: GenerationRequest, local: GenerationRequest
) -> None:
    with server.client() as client:
        generation = client.generate(short_clip)
        received = list(generation)
    expected = list(generate(local))
    assert [(frame.index, frame.time) for frame in received] == [(frame.index, frame.time) for frame in expected]
    assert all(np.array_equal(one.image, other.image) for one, other in zip(received, expected, strict=True))
    assert generation.summary.denoiser_calls == 1
    assert len(expected) == 2


def test_plain_http_answers_with_the_whole_mp4(server: Served, short_clip: GenerationRequest) -> None:
    settings = {"fps": 1.0, "num_inference_steps": 1, "guidance_scale": 1.0, "retarget_strategy": "no_retarget"}
    files = {**files_of(short_clip), "kps": short_clip.kps_path.read_bytes()}
    settings |= {"kps_size": "128,128", "kps_fps": 25.0}
    summary, video = server.video(files, settings, token=server.token)
    with av.open(io.BytesIO(video)) as media:
        assert {stream.type for stream in media.streams} == {"video", "audio"}
        assert len(list(media.decode(video=0))) == summary["frames"] == 2
    assert summary["encoder"] in ("libx264", "h264_nvenc")
    try:
        choose_encoder("h264_nvenc", 128, 128)
    except UserError:
        with pytest.raises(urllib.error.HTTPError) as problem:
            server.video(files, {**settings, "encoder": "h264_nvenc"}, token=server.token)
        assert problem.value.code == 400
        assert "invalid: --encoder h264_nvenc" in problem.value.read().decode()


def test_the_model_in_the_box_is_announced_once(server: Served) -> None:
    assert server.log().count("warning: no --bundle is given: the model in the box is taken") == 1


def test_health_and_metadata_are_tritons(server: Served) -> None:
    assert server.get("/v2/health/ready")[0] == server.get("/v2/health/live")[0] == 200
    assert '"portrait"' in server.get("/v2/models/vexpress")[1]


@pytest.mark.parametrize("path", CONTROLLED)
def test_nobody_controls_the_server_from_outside(server: Served, path: str) -> None:
    assert server.get(path)[0] in (400, 403, 404, 405)


def test_without_the_token_nothing_is_answered(server: Served, short_clip: GenerationRequest) -> None:
    for token in (None, "another"):
        with server.client(token=token) as client, pytest.raises(ServerError, match="token"):
            list(client.generate(short_clip))
        with pytest.raises(urllib.error.HTTPError) as problem:
            server.video(files_of(short_clip), {}, token=token)
        assert problem.value.code == 400
        assert "unauthorized: " in problem.value.read().decode()
    assert server.metric(ended("unauthorized")) == 4


def test_a_refusal_is_the_runtimes_sentence_without_the_servers_paths(
    server: Served, short_clip: GenerationRequest, tmp_path: Path
) -> None:
    (tmp_path / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with server.client() as client, pytest.raises(UserError, match="portrait") as problem:
        list(client.generate(replace(short_clip, reference_image_path=tmp_path / "noise.png")))
    assert "/" not in str(problem.value).replace("--", "")


def test_speech_beyond_the_limit_is_refused(server: Served, short_clip: GenerationRequest, tmp_path: Path) -> None:
    from media import write_wav

    write_wav(tmp_path / "long.wav", np.sin(np.arange(16000 * 6, dtype=np.float32) / 20))
    with server.client() as client, pytest.raises(UserError, match="more than this server's 5 s"):
        list(client.generate(replace(short_clip, audio_path=tmp_path / "long.wav")))


def test_beyond_the_queue_the_answer_is_busy_at_once(server: Served, long_clip: GenerationRequest) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(3)]
        running = threading.Thread(target=_ignoring, args=(clients[0], long_clip), daemon=True)
        running.start()
        server.wait_for(RUNNING, 1)
        waiting = threading.Thread(target=_ignoring, args=(clients[1], long_clip), daemon=True)
        waiting.start()
        server.wait_for(WAITING, 1)
        begin = time.monotonic()
        with pytest.raises(ServerBusy, match="try again later"):
            list(clients[2].generate(long_clip))
        assert time.monotonic() - begin < 2
        with pytest.raises(urllib.error.HTTPError, match="503") as problem:
            server.video(files_of(long_clip), {}, token=server.token)
        assert "busy: " in problem.value.read().decode()
    server.wait_for(WAITING, 0)
    server.wait_for(RUNNING, 0)
    assert server.metric(ended("cancelled")) >= 2


def test_a_client_that_goes_away_frees_its_worker(
    server: Served, long_clip: GenerationRequest, short_clip: GenerationRequest
) -> None:
    before, workers = server.metric(ended("cancelled")), server.workers()
    with in_progress(server, long_clip):
        server.wait_for(RUNNING, 1)
    server.wait_for(ended("cancelled"), before + 1, seconds=5)
    with server.client() as client:
        assert len(list(client.generate(short_clip))) == 2
    assert server.workers() == workers


def test_a_dead_worker_is_replaced_and_its_request_told(
    server: Served, long_clip: GenerationRequest, short_clip: GenerationRequest
) -> None:
    before = server.metric('vexpress_worker_restarts{worker="0"}')
    with server.client() as client:
        generation = client.generate(long_clip)
        os.kill(server.workers()[0], signal.SIGKILL)
        with pytest.raises(ServerError, match="ended unexpectedly"):
            list(generation)
        assert len(list(client.generate(short_clip))) == 2
    assert server.metric('vexpress_worker_restarts{worker="0"}') == before + 1


def test_over_http_a_time_limit_and_a_dead_worker_are_the_servers_fault(
    serve_environment: Path, long_clip: GenerationRequest, tmp_path: Path
) -> None:
    files, steps = files_of(long_clip), {"num_inference_steps": 1000}
    with served(serve_environment, tmp_path, "--backend=onnxruntime", "--threads=1", "--timeout=3") as server:
        with pytest.raises(urllib.error.HTTPError) as late:
            server.video(files, steps)
        worker = threading.Timer(1, lambda: os.kill(server.workers()[0], signal.SIGKILL))
        worker.start()
        with pytest.raises(urllib.error.HTTPError) as dead:
            server.video(files, steps)
    assert (late.value.code, dead.value.code) == (500, 500)
    assert "timeout: " in late.value.read().decode()
    assert "failed: " in dead.value.read().decode()


def test_no_inputs_are_left_on_the_servers_disk(server: Served) -> None:
    server.wait_for(RUNNING, 0)
    folder = Path(server._log).parent
    assert not list(folder.glob("vexpress-serve-*/scratch/vexpress-job-*"))


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param([signal.SIGTERM], id="sigterm"),
        pytest.param(
            [signal.SIGHUP, signal.SIGHUP],
            id="terminal",
            marks=pytest.mark.skipif(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, reason="started by nohup"),
        ),
    ],
)
def test_sigterm_and_a_closing_terminal_drain(
    serve_environment: Path, long_clip: GenerationRequest, tmp_path: Path, signals: list[int]
) -> None:
    request = replace(long_clip, num_inference_steps=2, guidance_scale=1.0)
    with served(serve_environment, tmp_path, "--backend=onnxruntime", "--threads=1") as server:
        with server.client() as client, server.client() as late:
            generation = client.generate(request)
            for number in signals:
                server.process.send_signal(number)
                server.wait_for_log("nothing new is taken")
            time.sleep(0.5)  # the model looks for that several times a second
            with pytest.raises(ServerBusy, match="ending"):
                late.generate(request)
            assert len(list(generation)) == 44
        assert server.process.wait(30) == 0
    assert not list(tmp_path.glob("vexpress-serve-*"))


def test_a_second_signal_ends_everything_in_the_middle_of_a_clip(
    serve_environment: Path, long_clip: GenerationRequest, tmp_path: Path
) -> None:
    with served(serve_environment, tmp_path, "--backend=onnxruntime", "--threads=1") as server:
        processes = server.processes()
        with server.client() as client:
            generation = client.generate(replace(long_clip, num_inference_steps=1000))
            server.process.send_signal(signal.SIGINT)
            server.wait_for_log("nothing new is taken")
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(15) == 1  # Triton itself would wait for the clip, as long as its client does
            with pytest.raises(ServerError, match="ended the stream"):
                list(generation)
        assert left_of(processes) == []
    assert not list(tmp_path.glob("vexpress-serve-*"))


def test_a_killed_server_takes_triton_and_workers_along(serve_environment: Path, tmp_path: Path) -> None:
    with served(serve_environment, tmp_path, "--backend=onnxruntime", "--threads=1") as server:
        processes = server.processes()
        server.process.kill()
        assert left_of(processes) == []


def test_messages_that_nobody_reads_any_more_do_not_end_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            tried.append(text)
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    command._say("ending")
    assert tried == ["vexpress serve: ending"]


def test_when_triton_dies_the_server_says_so_and_leaves_nothing(
    serve_environment: Path, long_clip: GenerationRequest, tmp_path: Path
) -> None:
    with served(serve_environment, tmp_path, "--backend=onnxruntime", "--threads=1") as server:
        (folder,) = (path.name for path in tmp_path.glob("vexpress-serve-*"))
        assert list(Path("/dev/shm").glob(f"{folder}*"))
        processes = server.processes()
        with in_progress(server, replace(long_clip, num_inference_steps=1000)):
            os.kill(server.triton(), signal.SIGKILL)
            assert server.process.wait(30) == 1
        assert "Triton ended unexpectedly" in server.log()
        assert left_of(processes) == []
    assert not list(Path("/dev/shm").glob(f"{folder}*"))
    assert not list(tmp_path.glob("vexpress-serve-*"))


def _ignoring(client: object, request: GenerationRequest) -> None:
    with contextlib.suppress(UserError, ValueError):
        list(client.generate(request))
