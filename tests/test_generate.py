"""`generate` as a user meets it: real portrait and speech in, an MP4 out, or one sentence and nothing."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from joint_order import joint_order
from media import write_wav
from PIL import Image

from vexpress_trt import cli
from vexpress_trt.engines.engine import load_engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.onnxruntime_engine import OnnxRuntimeEngine
from vexpress_trt.runtime import GenerationRequest, generate, preparation, write_video
from vexpress_trt.runtime import engine_loader as engine_loader_module
from vexpress_trt.runtime import generation as generation_module
from vexpress_trt.runtime import windows as windows_module
from vexpress_trt.runtime.tracks import save_track

DEMO = Path(__file__).resolve().parent.parent / "models" / "demo"
POINTS = np.array([[40, 40], [70, 40], [55, 60]], np.float32)


@pytest.fixture
def request_of(other_bundle: Path, tmp_path: Path) -> GenerationRequest:
    """A small, quick clip: 20 frames, 104x72, 2 steps, on onnxruntime."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (72, 104, 3), dtype=np.uint8)).save(tmp_path / "ref.png")
    speech = np.random.default_rng(1).normal(0, 0.1, 12800).astype(np.float32)
    write_wav(tmp_path / "aud.wav", speech * np.linspace(0, 1, 12800, dtype=np.float32))
    save_track(tmp_path / "kps.npy", np.repeat(POINTS[None], 30, axis=0), (104, 72), 25.0)
    return GenerationRequest(
        tmp_path / "ref.png",
        tmp_path / "aud.wav",
        kps_path=tmp_path / "kps.npy",
        bundle=other_bundle,
        backend="onnxruntime",
        num_inference_steps=2,
        fps=25.0,
        output_path=tmp_path / "out.mp4",
    )


def _frames(request: GenerationRequest) -> np.ndarray:
    return np.stack([frame.image for frame in generate(request)])


def _flags(request: GenerationRequest) -> list[str]:
    names = ("reference_image_path", "audio_path", "kps_path", "bundle", "backend", "num_inference_steps", "fps",
             "output_path")  # fmt: skip
    return [word for name in names for word in (f"--{name}", str(getattr(request, name)))]


def test_an_mp4_of_exactly_the_speechs_length_at_the_asked_rate(request_of: GenerationRequest) -> None:
    summary = write_video(request_of)
    assert (summary.frames, summary.fps, summary.strategy) == (20, 25.0, "no_retarget")
    assert summary.denoiser_calls == summary.windows * 2
    assert 0 < summary.denoiser_calls_before_first_frame < summary.denoiser_calls
    with av.open(str(request_of.output_path)) as media:
        video, audio = media.streams.video[0], media.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.frames, float(video.average_rate)) == (20, 25.0)
        assert abs(float(audio.duration * audio.time_base) - 0.8) < 1 / 25
    assert sorted(path.name for path in request_of.output_path.parent.iterdir()) == [
        "aud.wav", "kps.npy", "kps.npy.json", "out.mp4", "ref.png",
    ]  # fmt: skip


def test_frames_come_lazily_and_with_their_times(request_of: GenerationRequest) -> None:
    generation = generate(request_of)
    with pytest.raises(RuntimeError, match="when all frames were taken"):
        _ = generation.summary
    first = next(iter(generation))
    assert (first.index, first.time) == (0, 0.0)
    assert (first.image.shape, first.image.dtype) == ((72, 104, 3), np.uint8)
    with pytest.raises(RuntimeError, match="iterated once"):
        iter(generation)


def test_a_clip_shorter_than_a_window(request_of: GenerationRequest, tmp_path: Path) -> None:
    write_wav(tmp_path / "short.wav", np.random.default_rng(2).normal(0, 0.1, 2000).astype(np.float32))
    assert len(_frames(replace(request_of, audio_path=tmp_path / "short.wav"))) == 3


def test_speech_too_short_for_the_audio_encoder_is_refused(request_of: GenerationRequest, tmp_path: Path) -> None:
    write_wav(tmp_path / "click.wav", np.random.default_rng(2).normal(0, 0.1, 160).astype(np.float32))
    with pytest.raises(UserError, match="click.wav lasts 10 ms, the audio encoder needs 25 ms: give longer speech"):
        generate(replace(request_of, audio_path=tmp_path / "click.wav", fps=120.0))


def test_the_wavefront_gives_bit_for_bit_what_step_by_step_gives(
    request_of: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    wavefront = _frames(request_of)
    monkeypatch.setattr(windows_module, "latency_order", joint_order)
    monkeypatch.setattr(preparation, "live_windows", lambda plan, steps, batch: plan.windows)
    assert (wavefront == _frames(request_of)).all()


def test_bounded_memory_gives_the_same_frames_and_leaves_no_files(
    request_of: GenerationRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    frugal = _frames(replace(request_of, save_gpu_memory=True))
    assert list(scratch.iterdir()) == []
    assert (frugal == _frames(request_of)).all()


def test_guidance_of_one_runs_the_single_half(request_of: GenerationRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    original = generation_module.EngineLoader.use
    monkeypatch.setattr(
        generation_module.EngineLoader, "use", lambda loader, graph: used.append(graph) or original(loader, graph)
    )
    _frames(replace(request_of, guidance_scale=1.0))
    assert "denoiser_single" in used
    assert "denoiser_guided" not in used


def test_a_portraits_second_clip_runs_neither_vae_encoder_nor_reference_net(
    request_of: GenerationRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    used = []
    original = generation_module.EngineLoader.use
    monkeypatch.setattr(
        generation_module.EngineLoader, "use", lambda loader, graph: used.append(graph) or original(loader, graph)
    )
    request = replace(request_of, portrait_cache=str(tmp_path / "portraits"))
    first, portrait = write_video(request), {"vae_encoder", "reference"}
    frames = _frames(request)
    assert used.count("vae_encoder") == used.count("reference") == 1
    assert not first.portrait_cached and write_video(request).portrait_cached
    used.clear()
    assert (_frames(replace(request, portrait_cache="off")) == frames).all()
    assert portrait < set(used)


def test_steps_outside_the_guidance_interval_run_the_conditional_half_alone(
    request_of: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    original = OnnxRuntimeEngine.run

    def run(engine: OnnxRuntimeEngine, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        ran.append(engine.spec.name)
        return original(engine, **arrays)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    request = replace(request_of, num_inference_steps=4, guidance_interval="0,0.5", window_batch=2)
    generation = generate(request)
    frames = np.stack([frame.image for frame in generation])
    windows = generation.summary.windows
    assert generation.summary.guided_steps == 2
    single, guided = (ran.count(f"denoiser_{kind}") for kind in ("single", "guided"))
    assert single and guided and single + guided <= 4 * windows
    whole = _frames(replace(request, guidance_interval="0,1"))
    assert (frames != whole).any()
    assert (whole == _frames(replace(request, guidance_interval=None))).all()


def test_the_second_denoiser_loads_beside_the_first_ones_calls(
    request_of: GenerationRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = threading.Event()
    run = OnnxRuntimeEngine.run

    def load(bundle, graph, **settings):
        if graph == "denoiser_single":
            assert began.wait(60), "the guided steps wait for an engine that they do not need"
        return load_engine(bundle, graph, **settings)

    def told(engine: OnnxRuntimeEngine, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        if engine.spec.name == "denoiser_guided":
            began.set()
        return run(engine, **arrays)

    request = replace(request_of, num_inference_steps=4, guidance_interval="0,0.5")
    expected = _frames(request)
    monkeypatch.setattr(engine_loader_module, "load_engine", load)
    monkeypatch.setattr(OnnxRuntimeEngine, "run", told)
    assert (_frames(request) == expected).all()


def test_another_solver_is_another_way_to_the_picture(request_of: GenerationRequest) -> None:
    request = replace(request_of, num_inference_steps=4)
    multistep = replace(request, solver="dpmpp_2m")
    assert (_frames(multistep) != _frames(request)).any()
    assert np.abs(_frames(replace(multistep, window_batch=3)).astype(int) - _frames(multistep)).max() <= 1


def test_windows_in_batches_give_the_same_frames(request_of: GenerationRequest) -> None:
    batched = _frames(replace(request_of, window_batch=3, num_inference_steps=3)).astype(int)
    single = _frames(replace(request_of, num_inference_steps=3)).astype(int)
    assert np.abs(batched - single).max() <= 1


@pytest.mark.parametrize("save_gpu_memory", [False, True])
def test_only_graphs_that_work_together_are_in_memory_together(
    request_of: GenerationRequest, monkeypatch: pytest.MonkeyPatch, save_gpu_memory: bool
) -> None:
    loaded, together = set(), set()

    def load(bundle, graph, **settings):
        engine = load_engine(bundle, graph, **settings)
        loaded.add(graph)
        together.add(frozenset(loaded))
        release = engine.close
        engine.close = lambda: (loaded.discard(graph), release())
        return engine

    monkeypatch.setattr(engine_loader_module, "load_engine", load)
    monkeypatch.setattr(preparation, "ROOMY", 0.0)
    _frames(replace(request_of, save_gpu_memory=save_gpu_memory))
    loop = {"kps_guider", "denoiser_guided"}
    most = max(together, key=len)
    assert most == loop if save_gpu_memory else most == loop | {"vae_decoder"}
    assert not loaded


def test_openvino_in_fp32_agrees_with_onnxruntime(request_of: GenerationRequest) -> None:
    expected = _frames(request_of).astype(int)
    found = _frames(replace(request_of, backend="openvino", dtype="fp32")).astype(int)
    assert np.abs(found - expected).max() <= 1


def test_the_seed_decides(request_of: GenerationRequest) -> None:
    frames = _frames(request_of)
    assert (frames == _frames(request_of)).all()
    assert (frames != _frames(replace(request_of, seed=43))).mean() > 0.5


def test_a_frames_noise_does_not_depend_on_the_clips_length(request_of: GenerationRequest, tmp_path: Path) -> None:
    longer = replace(request_of, audio_path=DEMO / "speech.flac", num_inference_steps=1)
    both = []
    for number, request in enumerate((replace(request_of, num_inference_steps=1), longer)):
        path = tmp_path / f"{number}.npz"
        _frames(replace(request, dump_tensors=path))
        both.append(np.load(path)["initial_latents"][:, :, :20])
    assert (both[0] == both[1]).all()


def test_the_face_of_a_real_portrait_is_kept_in_a_crop_of_another_shape(request_of: GenerationRequest) -> None:
    generation = generate(replace(request_of, reference_image_path=DEMO / "portrait.jpg", kps_path=None))
    assert generation.clip.points.shape[1:] == (3, 2)
    assert (generation.clip.points >= 0).all()
    assert (generation.clip.points < [104, 72]).all()


def test_json_summary_and_progress_of_the_command(
    request_of: GenerationRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", *_flags(request_of), "--json"]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert (summary["frames"], summary["seed"], summary["backend"]) == (20, 42, "onnxruntime")
    assert {"portrait", "speech", "denoise", "decode", "encode"} <= summary["stage_seconds"].keys()
    assert "window" in captured.err


def test_doubtful_settings_get_a_line_of_advice(
    request_of: GenerationRequest, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="vexpress"):
        generate(replace(request_of, fps=12.0, audio_attention_weight=5.0))
    assert "--fps 12" in caplog.text
    assert "--audio_attention_weight 5" in caplog.text


def test_settings_of_a_gpu_do_nothing_on_the_cpu_and_say_so(
    request_of: GenerationRequest, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="vexpress"):
        generate(replace(request_of, gpu_id=1, gpu_memory="8GB"))
    assert "GPU 1 is not used" in caplog.text
    assert "--gpu_memory has no effect" in caplog.text


def _corrupt(path: Path) -> None:
    path.write_bytes(b"\x00garbage" * 50)


BAD = {
    "no portrait": (lambda r: os.remove(r.reference_image_path), "does not exist"),
    "damaged portrait": (lambda r: _corrupt(r.reference_image_path), "ref.png"),
    "empty portrait": (lambda r: r.reference_image_path.write_bytes(b""), "is empty"),
    "tiny portrait": (lambda r: Image.new("RGB", (63, 90)).save(r.reference_image_path), "63x90"),
    "no audio": (lambda r: os.remove(r.audio_path), "does not exist"),
    "damaged audio": (lambda r: _corrupt(r.audio_path), "aud.wav"),
    "silent audio": (lambda r: write_wav(r.audio_path, np.zeros(16000, np.float32)), "silent"),
    "audio below a frame": (lambda r: write_wav(r.audio_path, np.full(200, 0.3, np.float32)), "shorter than one frame"),
    "damaged track": (lambda r: _corrupt(r.kps_path), "kps.npy"),
    "track off the picture": (
        lambda r: save_track(r.kps_path, np.full((9, 3, 2), 900, np.float32), (104, 72), 25.0), "--kps_size",
    ),
    "track of another kind": (lambda r: shutil.move(r.kps_path, r.kps_path.with_suffix(".csv")), "kps.npy"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_exit_2_and_nothing_written(
    request_of: GenerationRequest, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = BAD[case]
    spoil(request_of)
    request_of.output_path.write_bytes(b"an earlier video")
    assert cli.main(["generate", *_flags(request_of), "--quiet"]) == 2
    captured = capsys.readouterr()
    (sentence,) = [line for line in captured.err.splitlines() if not line.startswith("warning")]
    assert sentence.startswith("vexpress: error: ")
    assert words in sentence
    assert request_of.output_path.read_bytes() == b"an earlier video"
    assert not [path for path in request_of.output_path.parent.iterdir() if ".tmp" in path.name]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--output_path", "/proc/none/out.mp4"], "cannot write"),
        (["--output_path", "out.avi"], ".mp4"),
        (["--bundle", "none.bundle"], "none.bundle"),
        (["--context_frames", "40"], "--context_frames 40"),
        (["--num_pad_audio_frames", "3"], "--num_pad_audio_frames 3"),
        (["--device", "cuda"], "--device cuda"),
        (["--dtype", "fp16"], "fp32 only"),
        (["--dump_tensors", "out.txt"], ".npz"),
        (["--detector", "insightface", "--retarget_strategy", "fix_face"], "insightface"),
    ],
)
def test_impossible_settings_are_one_sentence_and_exit_2(
    request_of: GenerationRequest, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", *_flags(request_of), "--quiet", *flags]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not request_of.output_path.exists()


def test_a_portrait_without_a_face_is_refused_only_when_a_face_is_needed(request_of: GenerationRequest) -> None:
    assert cli.main(["generate", *_flags(request_of), "--retarget_strategy", "fix_face", "--quiet"]) == 2
    assert cli.main(["generate", *_flags(request_of), "--quiet"]) == 0


def test_a_damaged_bundle_is_named(request_of: GenerationRequest, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "copy.bundle"
    shutil.copytree(request_of.bundle, copy)
    weights = next((copy / "onnx" / "fp32").glob("denoiser.data"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert cli.main(["generate", *_flags(replace(request_of, bundle=copy)), "--quiet"]) == 2
    assert "denoiser.data is damaged" in capsys.readouterr().err


def test_weights_that_blow_up_stop_the_run_naming_graph_window_and_step(
    request_of: GenerationRequest, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(
        "vexpress_trt.runtime.latent_store.LatentStore.gather", lambda store, window, step, out: out.fill(np.nan)
    )
    assert cli.main(["generate", *_flags(request_of), "--quiet"]) == 2
    assert "denoiser_guided produced non-finite values (prediction of window 0, step 0)" in capsys.readouterr().err
    assert not request_of.output_path.exists()


@pytest.mark.parametrize("times", [1, 3], ids=["once", "impatiently"])
@pytest.mark.parametrize(
    "stop",
    [
        signal.SIGINT,
        signal.SIGTERM,
        pytest.param(
            signal.SIGHUP,
            marks=pytest.mark.skipif(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, reason="started by nohup"),
        ),
    ],
)
def test_an_interrupted_run_leaves_nothing(request_of: GenerationRequest, stop: signal.Signals, times: int) -> None:
    command = [
        sys.executable,
        "-m",
        "vexpress_trt.cli",
        "generate",
        *_flags(request_of),
        "--num_inference_steps",
        "500",
    ]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("denoise"):
            break
    time.sleep(0.2)
    for _ in range(times):
        running.send_signal(stop)
        time.sleep(0.02)
    assert running.wait(timeout=60) == 128 + stop
    folder = request_of.output_path.parent
    assert not [path.name for path in folder.iterdir() if "out" in path.name]
