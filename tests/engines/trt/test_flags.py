"""What `vexpress build` cannot do is one sentence and exit status 2, before anything is built."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from vexpress_trt import cli
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.trt import build, preflight
from vexpress_trt.engines.trt.bindings import check_bindings
from vexpress_trt.engines.trt.builder import Build, BuildOptions, check_options, reason_of
from vexpress_trt.engines.trt.flavour import RTX, TENSORRT, TensorRt, load_tensorrt

H100 = SimpleNamespace(name="NVIDIA H100", memory=80 << 30, capability=(9, 0))
VOLTA = SimpleNamespace(name="Tesla V100", memory=16 << 30, capability=(7, 0))


def refusal(capsys: pytest.CaptureFixture, *command: str) -> str:
    """The sentence of a command that must be refused."""
    try:
        status = cli.main(["build", *command])
    except SystemExit as exit:  # argparse's own refusals
        status = exit.code
    assert status == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--target sm90", "TensorRT-RTX builds for sm75, sm80, sm86, sm89, sm120, sm121; for others (H100"),
        ("--target sm89,sm13", "--target sm13: TensorRT-RTX builds for"),
        ("--target ada", "'ada': compute capabilities such as sm89,sm120"),
        ("--target sm89 --version_compatible", "--version_compatible: TensorRT-RTX needs a lean runtime"),
        ("--target sm89 --hardware_compatible", "--hardware_compatible: TensorRT-RTX builds for several GPUs by"),
        ("--target sm89 --builds 3", "--builds 3: TensorRT-RTX chooses its kernels when the engine is loaded"),
        ("--target sm89 --builds 0", "--builds 0: must be at least 1."),
        (
            "--target sm89 --timing_cache .",
            "--timing_cache: TensorRT-RTX chooses its kernels when the engine is loaded",
        ),
        ("--target sm89 --window_batch 0", "--window_batch 0: must be from 1 to 64"),
        ("--target sm89 --optimization_level 9", "invalid choice: 9"),
        ("--target sm89 --workspace tiny", "'tiny': a number of GiB from 0.0625 to 1024"),
        ("--target sm89 --window_batch 65", "--window_batch 65: must be from 1 to 64"),
        ("--target sm89 --image_width 100", "--image_width 100: must be a multiple of 8 from 64 to 2048"),
        ("--target sm89 --image_width 0", "--image_width 0: must be a multiple of 8 from 64 to 2048"),
        ("--target sm89 --image_height 2056", "--image_height 2056: must be a multiple of 8 from 64 to 2048"),
        ("--target sm89 --context_frames 0", "--context_frames 0: must be from 1 to 32 for this model"),
        ("--profile dynamic --image_width 512-256", "--image_width 512-256: MIN must not be above BEST"),
        (
            "--profile dynamic --image_width 64-512-256",
            "--image_width 64-512-256: MIN must not be above BEST, nor BEST",
        ),
        ("--profile dynamic --image_width 64-100", "--image_width 64-100: must be a multiple of 8 from 64 to 2048"),
        ("--profile dynamic --image_height 0-64", "--image_height 0-64: must be a multiple of 8 from 64 to 2048"),
        ("--profile dynamic --image_height 64-4096", "--image_height 64-4096: must be a multiple of 8 from 64 to 2048"),
        ("--profile dynamic --context_frames 4-33", "--context_frames 4-33: must be from 1 to 32 for this model"),
        ("--profile dynamic --window_batch 0-4", "--window_batch 0-4: must be from 1 to 64"),
        ("--image_width 64-128", "--image_width 64-128: a range needs --profile dynamic; a static one has one size"),
        ("--window_batch 1-4", "--window_batch 1-4: a range needs --profile dynamic; a static one has one size (from"),
        ("--audio_seconds 0.01-8", "--audio_seconds 0.01-8: must be from 0.05 to 60"),
        ("--audio_seconds 61", "--audio_seconds 61: must be from 0.05 to 60"),
        ("--audio_seconds 8-8", "--audio_seconds 8-8: speech has no fixed length, MAX must be more than MIN"),
        (
            "--audio_seconds long",
            "--audio_seconds: 'long': seconds from 0.05 to 60, or a range as MIN-MAX or MIN-BEST-",
        ),
        ("--image_width wide", "--image_width: 'wide': a multiple of 8 from 64 to 2048, or a range as MIN-MAX or MIN-"),
        ("--image_width 64-", "--image_width: '64-': a multiple of 8 from 64 to 2048, or a range"),
        ("--image_height 64.5", "--image_height: '64.5': a multiple of 8 from 64 to 2048, or a range"),
        ("--context_frames -4", "--context_frames: '-4': a number from 1 to the model's longest window, or a range"),
        ("--window_batch 1-2-3-4", "--window_batch: '1-2-3-4': a number from 1 to 64, or a range"),
        ("--target sm89 --gpu 0", "--gpu builds for that GPU, --target ahead of time for others: leave one out"),
        ("--target sm89 --context_frames 99", "--context_frames 99: must be from 1 to 32 for this model"),
        ("--target sm89 --precision bf16", "in fp32 only; add it with `vexpress export"),
        ("--target sm89 --graphs nothing", "--graphs nothing: "),
    ],
)
def test_what_rtx_cannot_do_is_refused(rtx: TensorRt, bundle: Bundle, flags: str, said: str, capsys) -> None:
    assert said in refusal(capsys, str(bundle.root), *flags.split())
    assert not (bundle.root / "engines").exists()


@pytest.mark.parametrize("flags", ["--profile dynamic --image_width 512-256", "--window_batch 65"])
def test_sizes_are_refused_before_tensorrt_is_imported(bundle: Bundle, flags: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(build, "load_tensorrt", lambda backend: pytest.fail("it was imported"))
    assert refusal(capsys, str(bundle.root), *flags.split()).startswith("vexpress: error: --")


def test_without_a_gpu_a_target_is_asked_for(rtx: TensorRt, bundle: Bundle, monkeypatch, capsys) -> None:
    status = SimpleNamespace(cuda=None, devices=(), reason="no NVIDIA driver")
    monkeypatch.setattr(preflight, "gpu_status", lambda: status)
    said = refusal(capsys, str(bundle.root))
    assert "no NVIDIA driver; --target sm89 builds ahead of time without one" in said


@pytest.mark.parametrize(
    ("backend", "gpu", "cuda", "said"),
    [
        (RTX, H100, "13.0", "TensorRT-RTX does not support it; use --backend tensorrt"),
        (TENSORRT, VOLTA, "13.0", "needs 7.5 .Turing. or newer"),
        (TENSORRT, H100, "12.4", "is built for CUDA 13, the driver supports 12.4: update the driver, or install"),
    ],
)
def test_gpus_and_drivers_that_do_not_suit_are_named(backend, gpu, cuda, said, monkeypatch) -> None:
    monkeypatch.setattr(preflight, "gpu_status", lambda: SimpleNamespace(cuda=cuda, devices=(gpu,), reason=""))
    monkeypatch.setattr(TensorRt, "cuda_major", 13)
    with pytest.raises(UserError, match=said):
        preflight.targets_here(TensorRt(backend, SimpleNamespace(), "11.4"))


def test_full_tensorrt_builds_for_its_own_gpu_only() -> None:
    with pytest.raises(UserError, match="--target: full TensorRT builds on the GPU it builds for"):
        check_options(TensorRt(TENSORRT, SimpleNamespace(), "11.4"), BuildOptions(("sm89",)))


def test_the_same_timings_would_make_the_same_engine_again(tmp_path: Path) -> None:
    settings = build.BuildSettings(tmp_path, TENSORRT, builds=3, timing_cache=tmp_path)
    with pytest.raises(UserError, match="--timing_cache: with it all 3 builds of --builds are the same"):
        build.check_builds(TensorRt(TENSORRT, SimpleNamespace(), "11.4"), settings)


@pytest.mark.parametrize("version", ["8.6.1", "10.11.0.33"])
def test_an_old_tensorrt_is_refused_with_the_command_that_updates_it(version: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))
    with pytest.raises(UserError, match=f"tensorrt {version} is too old: install 10.12 or newer with `pip install"):
        load_tensorrt(TENSORRT)


def test_too_little_memory_is_a_sentence(rtx: TensorRt, bundle: Bundle, monkeypatch, capsys) -> None:
    monkeypatch.setattr(preflight, "available_memory", lambda: 100 << 20)
    assert "0.1 GiB are free: close other programs" in refusal(capsys, str(bundle.root), "--target", "sm89")


@pytest.mark.parametrize(
    ("name", "dtype", "channels", "said"),
    [
        ("picture", "float32", 4, "its outputs are picture, the manifest says image"),
        ("image", "float16", 4, r"image is float16 \[-1, 4, -1, -1\], the manifest says float32 \[-1, 4, -1, -1\]"),
        ("image", "float32", 3, r"latents is float32 \[-1, 3, -1, -1\], the manifest says float32 \[-1, 4, -1, -1\]"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_named(
    rtx: TensorRt, bundle: Bundle, name: str, dtype: str, channels: int, said: str
) -> None:
    trt = rtx.module
    network = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_network(0)
    latents = network.add_input("latents", trt.float32, (-1, channels, -1, -1))
    network.add_input("feature", trt.float32, (-1, 4, -1, -1))
    image = network.add_cast(latents, getattr(trt, dtype)).get_output(0)
    image.name = name
    network.mark_output(image)
    with pytest.raises(UserError, match=said):
        check_bindings(trt, network, bundle.graph("vae_decoder", "fp32"))


def test_the_reason_of_a_failed_build_is_the_first_that_is_not_the_missing_driver() -> None:
    log = SimpleNamespace(lines=["In f (cudaError 35: no driver)", "no kernel for x", "gave up"])
    assert reason_of(log) == "no kernel for x"
    assert reason_of(SimpleNamespace(lines=["In g (cudaError 35: ...)"])) == "In g (cudaError 35: ...)"
    small = SimpleNamespace(lines=["OutOfMemory (Requested size was 2152845448 bytes.)"])
    assert "needs more than --workspace 2 GiB of scratch: raise it" in reason_of(small, 2 << 30)
    assert reason_of(small, 4 << 30).endswith(
        "it may have too little memory: close other programs or lower --workspace"
    )
    assert reason_of(small).endswith("it may have too little memory: close other programs")  # of a plan that is loaded
    unknown = SimpleNamespace(lines=["Could not find any implementation for node y"])
    assert "lower --workspace" in reason_of(unknown, 4 << 30)


@pytest.mark.parametrize(
    ("symbols", "helps"),
    [
        ("Nhw", ", or build for a smaller image"),
        ("S", ", or build for less speech at once (--audio_seconds)"),
        ("N", ""),
    ],
)
def test_where_scratch_is_short_only_sizes_that_the_graph_has_are_called_too_large(symbols: str, helps: str) -> None:
    small = SimpleNamespace(lines=["OutOfMemory (Requested size was 2152845448 bytes.)"])
    assert reason_of(small, 2 << 30, symbols).endswith(f"of scratch: raise it to what the GPU can spare{helps}")


def test_a_builder_s_reason_is_one_line() -> None:
    assert reason_of(SimpleNamespace(lines=["Error in x\n  [8]  no\n"])) == "Error in x [8] no"
    one_pixel = SimpleNamespace(lines=["In checkSanity\nTotal number of elements in reduction must be > 1 but got1"])
    assert reason_of(one_pixel).endswith("one pixel: build for a larger image")


def test_a_damaged_graph_is_a_sentence(rtx: TensorRt, make_bundle, tmp_path: Path, capsys) -> None:
    bundle = make_bundle(tmp_path / "x.bundle")
    spec = bundle.graph("vae_decoder", "fp32")
    path = tmp_path / "cut.onnx"
    path.write_bytes(bundle.path(spec.path).read_bytes()[:60])
    with pytest.raises(UserError, match=r"cut.onnx is not a readable ONNX model .*: export the bundle again"):
        Build(rtx).run(path, spec, None, BuildOptions(("sm89",)))
