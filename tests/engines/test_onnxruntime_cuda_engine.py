"""onnxruntime under the device's loop; here its CPU provider stands for the GPU, on NumPy buffers."""

import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnxruntime

from vexpress_trt.engines import onnxruntime_cuda_engine as module
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.engines.onnxruntime_cuda_engine import CPU, CUDA, OnnxRuntimeDeviceEngine


def load(bundle: Bundle, precision: str = "fp32", provider: str = CPU, **settings) -> OnnxRuntimeDeviceEngine:
    return OnnxRuntimeDeviceEngine(bundle, bundle.graph("vae_decoder", precision), provider=provider, **settings)


def test_it_runs_on_buffers_in_place(bundle: Bundle, example: Callable) -> None:
    case = example()
    buffers = {**case.inputs, "image": np.full_like(case.image, np.nan)}
    with load(bundle) as engine:
        engine.bind_buffers(**buffers)
        engine.enqueue(1)
        np.testing.assert_allclose(buffers["image"], case.image, atol=2e-6)
        buffers["feature"] += 1
        engine.enqueue(1)
        np.testing.assert_allclose(buffers["image"], case.image + 1, atol=2e-6)


def test_an_input_given_as_an_array_stays_while_others_are_buffers(bundle: Bundle, example: Callable) -> None:
    case = example()
    image = np.full_like(case.image, np.nan)
    with load(bundle) as engine:
        engine.bind(feature=case.inputs["feature"])
        engine.bind_buffers(latents=case.inputs["latents"], image=image)
        engine.enqueue(1)
        np.testing.assert_allclose(image, case.image, atol=2e-6)
        engine.bind(feature=case.inputs["feature"] + 1)
        engine.enqueue(1)
        np.testing.assert_allclose(image, case.image + 1, atol=2e-6)


def test_arrays_alone_give_arrays(bundle: Bundle, example: Callable) -> None:
    with load(bundle) as engine:
        for case in (example(), example(count=1, height=4)):
            np.testing.assert_allclose(engine.run(**case.inputs)["image"], case.image, atol=2e-6)


def test_the_session_belongs_to_the_stream_it_enqueues_on(
    bundle: Bundle, example: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    original = module.open_session
    monkeypatch.setattr(module, "open_session", lambda *given, **named: opened.append(1) or original(*given, **named))
    case = example()
    with load(bundle) as engine:
        engine.bind_buffers(**case.inputs, image=np.empty_like(case.image))
        for stream, sessions in ((1, 1), (1, 1), (2, 2)):
            engine.enqueue(stream)
            assert len(opened) == sessions
        engine.renew()
        engine.bind_buffers(**case.inputs, image=np.empty_like(case.image))
        engine.enqueue(2)
        engine.run(**case.inputs)
        assert len(opened) == 2, "the next clip has the streams of the last one"


def test_the_gpus_session_gets_gpu_stream_and_limit(
    bundle: Bundle, example: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(bundle: Bundle, spec: object, threads: int, *, provider: tuple) -> None:
        asked.append(provider)
        raise UserError("not here")

    monkeypatch.setattr(module, "open_session", refuse)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with load(bundle, provider=CUDA, backend="onnxruntime-cuda:1") as engine, pytest.raises(UserError):
        engine.enqueue(4711)
    with load(bundle, provider=CUDA, gpu_memory=3 << 30) as engine, pytest.raises(UserError):
        engine.enqueue(1)
    (name, options), (_, limited) = asked
    assert name == CUDA
    assert (options["device_id"], options["user_compute_stream"]) == ("1", "4711")
    assert options["use_tf32"] == "0"
    assert "gpu_mem_limit" not in options
    assert (limited["gpu_mem_limit"], limited["arena_extend_strategy"]) == (str(3 << 30), "kSameAsRequested")


def test_a_run_beyond_its_limit_is_told_with_the_figure(
    bundle: Bundle, example: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = example()
    with load(bundle, gpu_memory=512 << 20) as engine:
        engine.bind_buffers(**case.inputs, image=np.empty_like(case.image))
        engine.enqueue(1)

        def fail(*about: object) -> None:
            raise RuntimeError(
                "BFCArena::AllocateRawInternal Available memory of 1 is smaller than requested bytes of 2"
            )

        monkeypatch.setattr(engine._session, "run_with_iobinding", fail)
        with pytest.raises(UserError, match="vae_decoder, for which 512 MiB of --gpu_memory were left: use"):
            engine.enqueue(1)


def test_a_session_that_fell_back_to_the_cpu_is_refused(
    bundle: Bundle, example: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime lists the provider and then goes on without it."""
    original = module.open_session
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(module, "open_session", lambda *given, provider: original(*given, provider=(CPU, {})))
    with load(bundle, provider=CUDA) as engine, pytest.raises(UserError, match="would run vae_decoder on the CPU"):
        engine.enqueue(1)


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("CUDA Provider not available, can't get interface for it", "to the GPU (CUDA Provider not available"),
        ("CUDA failure 2: out of memory ; GPU=0", "not enough memory for vae_decoder"),
    ],
)
def test_an_array_that_does_not_get_to_the_gpu_is_told(
    bundle: Bundle, example: Callable, monkeypatch: pytest.MonkeyPatch, problem: str, said: str
) -> None:
    """Arrays are bound before there is a session: it is then that a provider which does not load is met first."""

    def fail(*about: object) -> None:
        raise RuntimeError(problem)

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", fail)
    with load(bundle) as engine, pytest.raises(UserError, match=re.escape(said)):
        engine.run(**example().inputs)


def test_cudas_libraries_are_loaded_once_and_standard_output_stays_clean(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load libcudnn.so.9"))
    module._load_libraries.cache_clear()
    for provider in (CPU, CUDA, CUDA):
        load(bundle, provider=provider).close()
    assert capsys.readouterr() == ("", "Failed to load libcudnn.so.9\n")


def test_engines_that_load_side_by_side_leave_standard_output_as_it_is(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def slow() -> None:
        calls.append(sys.stdout)
        time.sleep(0.1 * len(calls))  # who begins last ends last

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", slow)
    module._load_libraries.cache_clear()
    before = sys.stdout
    with ThreadPoolExecutor(2) as threads:
        for engine in threads.map(lambda _: load(bundle, provider=CUDA), range(2)):
            engine.close()
    assert sys.stdout is before
    assert len(calls) == 1


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA")
def test_a_package_without_cuda_is_named(bundle: Bundle) -> None:
    with pytest.raises(UserError, match=r"is built without CUDA: .*pip install 'onnxruntime-gpu\[cuda,cudnn\]'"):
        load(bundle, provider=CUDA)


def test_what_is_not_bound_or_not_there_is_named(bundle: Bundle, example: Callable) -> None:
    with load(bundle) as engine:
        engine.bind_buffers(latents=example().inputs["latents"])
        with pytest.raises(ValueError, match="vae_decoder: feature is not bound"):
            engine.enqueue(1)
        with pytest.raises(ValueError, match="there is no input or output 'nothing'"):
            engine.bind_buffers(nothing=np.zeros(1))
    with pytest.raises(UserError, match="computes in the graph's own precision, fp32, not in fp16"):
        load(bundle, dtype="fp16")


def test_after_a_clip_nothing_is_bound(bundle: Bundle, example: Callable) -> None:
    case = example()
    with load(bundle) as engine:
        engine.bind_buffers(**case.inputs, image=np.empty_like(case.image))
        engine.enqueue(1)
        engine.renew()
        with pytest.raises(ValueError, match="is not bound"):
            engine.enqueue(1)
        np.testing.assert_allclose(engine.run(**case.inputs)["image"], case.image, atol=2e-6)


def test_it_says_that_it_does_not_capture(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    body = lambda: None  # noqa: E731
    with load(bundle) as engine, caplog.at_level("WARNING", logger="vexpress"):
        assert engine.capture(1, body) is body
    assert "does not capture vae_decoder" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(bool(gpu_status().reason), reason=gpu_status().reason or "there is a GPU")
@pytest.mark.skipif(CUDA not in onnxruntime.get_available_providers(), reason="this onnxruntime has no CUDA")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu_it_gives_the_same(make_bundle: Callable, example: Callable, tmp_path: Path, precision: str) -> None:
    from vexpress_trt.runtime.cuda.gpu import GpuDevice

    case, device = example(precision), GpuDevice()
    arrays = {**case.inputs, "image": np.zeros(case.image.shape, case.inputs["feature"].dtype)}
    buffers = device.arena({name: (array.shape, array.dtype) for name, array in arrays.items()})
    stream, pinned = device.stream(), {name: device.pinned(a.shape, a.dtype) for name, a in arrays.items()}
    with load(make_bundle(tmp_path / "x", [precision]), precision, CUDA) as engine:
        engine.bind_buffers(**buffers)
        for name, array in case.inputs.items():
            pinned[name][...] = array
            device.upload(pinned[name], buffers[name], stream)
        engine.enqueue(stream)
        device.download(buffers["image"], pinned["image"], stream)
        event = device.event()
        device.record(event, stream)
        while not device.happened(event):
            pass
        np.testing.assert_allclose(pinned["image"].astype(np.float32), case.image, atol=2e-2)
    device.close()
