"""Engines of a bundle run: found without being deserialised, on host arrays and on buffers, in shared memory.

TensorRT's runtime side and the GPU are played on the CPU (`fake_tensorrt`); what the real TensorRT-RTX says of a plan
on a machine without a GPU is its own.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt import HostDriver, store_plan

from vexpress_trt import cli
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.engine import CancelledError, load_engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.selection import EngineChoice, choose_engines
from vexpress_trt.engines.trt.build import BuildSettings, build_engines
from vexpress_trt.engines.trt.builder import Build, BuildOptions
from vexpress_trt.engines.trt.engine import TensorRtEngine
from vexpress_trt.engines.trt.flavour import RTX, TENSORRT, TensorRt
from vexpress_trt.engines.trt.inventory import format_engines, list_engines
from vexpress_trt.engines.trt.loaded_plan import LoadedPlan
from vexpress_trt.engines.trt.profile import Profile, ProfileSettings
from vexpress_trt.engines.trt.scratch import Scratch
from vexpress_trt.engines.trt.store import EngineStore

SMALL = ProfileSettings(image_width=40, image_height=24)  # N = 1, h = 3, w = 5


def load(bundle: Bundle, tensorrt: TensorRt, **settings) -> TensorRtEngine:
    spec = bundle.graph("vae_decoder", "fp32")
    return TensorRtEngine(bundle, spec, backend=tensorrt.backend, **settings)


def test_arrays_in_arrays_out(bundle: Bundle, flavoured: TensorRt, gpu: HostDriver, example) -> None:
    store_plan(bundle, flavoured, "vae_decoder", settings=SMALL)
    one = example(count=1)
    with load(bundle, flavoured) as engine:
        first = engine.run(**one.inputs)["image"]
        np.testing.assert_allclose(first, one.image, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(engine.run(latents=one.inputs["latents"] * 0)["image"], one.inputs["feature"])
    assert not gpu.memory and not gpu.streams


def test_load_engine_takes_it(bundle: Bundle, flavoured: TensorRt, example) -> None:
    store_plan(bundle, flavoured, "vae_decoder", settings=SMALL)
    one = example(count=1)
    with load_engine(bundle, "vae_decoder", backend=flavoured.backend, precision="fp32", dtype="fp32") as engine:
        np.testing.assert_allclose(engine.run(**one.inputs)["image"], one.image, rtol=1e-5, atol=1e-6)


def test_buffers_are_read_and_written_in_place_on_the_stream_that_is_given(bundle, flavoured, gpu, example) -> None:
    store_plan(bundle, flavoured, "vae_decoder", settings=SMALL)
    one = example(count=1)
    latents, image = one.inputs["latents"].copy(), np.zeros_like(one.image)
    with load(bundle, flavoured) as engine:
        engine.bind(feature=one.inputs["feature"])
        engine.bind_buffers(latents=latents, image=image)
        engine.enqueue(7)
        np.testing.assert_allclose(image, one.image, rtol=1e-5, atol=1e-6)
        replay = engine.capture(7, lambda: engine.enqueue(7))
        latents[:] = 0
        replay()
        np.testing.assert_allclose(image, one.inputs["feature"])
    assert {stream for _, stream, _ in fake_tensorrt.IExecutionContext.runs} == {7}


def test_a_run_of_the_same_sizes_leaves_the_context_as_the_one_before_did(
    bundle, flavoured, gpu, example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A context that is told sizes or memory prepares anew, which it must not while a run is captured."""
    told: list[str] = []
    for name in ("set_input_shape", "update_device_memory_size_for_shapes", "set_device_memory"):
        real = getattr(fake_tensorrt.IExecutionContext, name)

        def noted(self: object, *about: object, name: str = name, real: Callable = real) -> object:
            told.append(name)
            return real(self, *about)

        monkeypatch.setattr(fake_tensorrt.IExecutionContext, name, noted)
    store_plan(bundle, flavoured, "vae_decoder", settings=ProfileSettings("dynamic", 64, 64))
    one, wider = example(count=1, height=5, width=6), example(count=1, height=5, width=7)
    image = np.zeros_like(one.image)
    with load(bundle, flavoured) as engine:
        engine.bind(**one.inputs)
        engine.bind_buffers(image=image)
        engine.enqueue(7)
        assert told == ["set_input_shape"] * 2 + ["update_device_memory_size_for_shapes", "set_device_memory"]
        engine.capture(7, lambda: engine.enqueue(7))()
        assert len(told) == 4
        np.testing.assert_allclose(image, one.image, rtol=1e-5, atol=1e-6)
        for sized in (wider, one):
            np.testing.assert_allclose(engine.run(**sized.inputs)["image"], sized.image, rtol=1e-5, atol=1e-6)
        assert told == told[:4] * 3


@pytest.mark.parametrize("streaming", [False, True])
def test_where_the_working_memory_of_sizes_is_not_told_it_is_that_of_the_largest(
    streaming: bool, bundle, flavoured, gpu, example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT tells 0 where it fails to; what streaming needs it tells of the largest sizes only."""
    needed = fake_tensorrt.NEEDED + (fake_tensorrt.STREAMING if streaming else 0)
    given: list[int] = []
    real = fake_tensorrt.IExecutionContext.set_device_memory
    monkeypatch.setattr(
        fake_tensorrt.IExecutionContext,
        "set_device_memory",
        lambda self, memory, size: given.append(size) or real(self, memory, size),
    )
    if not streaming:
        monkeypatch.setattr(fake_tensorrt.IExecutionContext, "update_device_memory_size_for_shapes", lambda self: 0)
    path = store_plan(bundle, flavoured, "vae_decoder", settings=SMALL, streaming=1000, padding="x" * 1000)
    budget = path.stat().st_size - 500 + needed if streaming else None
    with load(bundle, flavoured, gpu_memory=budget) as engine:
        engine.run(**example(count=1).inputs)
    assert given == [needed]


def test_where_tensorrt_does_not_start_that_is_a_sentence(
    bundle: Bundle, flavoured: TensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def null(self: object, log: fake_tensorrt.ILogger) -> None:
        log.log(fake_tensorrt.ILogger.ERROR, "CUDA initialization failure with error: 2")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(fake_tensorrt.Runtime, "__init__", null)
    store_plan(bundle, flavoured, "vae_decoder")
    said = (
        f"{flavoured.backend} 11.4 does not start .CUDA initialization failure with error: 2.: free memory on the GPU"
    )
    with pytest.raises(UserError, match=said):
        load(bundle, flavoured)
    spec = bundle.graph("vae_decoder", "fp32")
    monkeypatch.setattr(fake_tensorrt.Builder, "__init__", null)
    with pytest.raises(UserError, match=said):
        Build(flavoured).run(bundle.path(spec.path), spec, SMALL.of(spec, bundle.manifest.model), BuildOptions())


@pytest.mark.parametrize(
    ("buffers", "said"),
    [
        ({"sound": np.zeros(1)}, "there is no input or output 'sound'"),
        ({"latents": np.zeros((1, 4, 3, 5))}, "latents is float64, expected float32"),
        ({"image": np.zeros((1, 4, 3, 9), np.float32)}, r"image has shape \[1, 4, 3, 5\], not \[1, 4, 3, 9\]"),
    ],
)
def test_buffers_that_do_not_suit_are_refused(bundle, flavoured, gpu, example, buffers: dict, said: str) -> None:
    store_plan(bundle, flavoured, "vae_decoder", settings=SMALL)
    with load(bundle, flavoured) as engine, pytest.raises(ValueError, match=said):
        engine.bind(**example(count=1).inputs)
        engine.bind_buffers(**buffers)
        engine.enqueue(7)


def test_engines_that_never_run_at_once_share_their_working_memory(bundle, gpu, example) -> None:
    tensorrt = TensorRt(TENSORRT, fake_tensorrt, "11.4")
    store_plan(bundle, tensorrt, "vae_decoder", settings=SMALL)
    one = example(count=1)
    runs = fake_tensorrt.IExecutionContext.runs
    with load(bundle, tensorrt) as first, load(bundle, tensorrt) as second:
        for engine in (first, second):
            engine.run(**one.inputs)  # waited for
        assert runs[0][2] == runs[1][2]
        for engine, stream in ((first, 7), (second, 7), (second, 8)):  # one after another on 7, beside it on 8
            engine.bind_buffers(image=np.zeros_like(one.image))
            engine.enqueue(stream)
        assert runs[2][2] == runs[3][2]
        assert len({runs[0][2], runs[2][2], runs[4][2]}) == 3
    assert not gpu.memory


def test_memory_of_a_stream_stays_where_it_is_while_captured_work_may_use_it() -> None:
    host = HostDriver()
    shared = Scratch(host)
    small = shared.of_stream(1, 1000, "a")
    assert shared.of_stream(1, 5000, "b") != small and shared.of_stream(1, 800, "b") == small
    with shared.lent(100) as lent, shared.lent(100) as other:
        assert len({lent, other, small}) == 3
    shared.release("a")
    assert small in host.memory  # "b" has it too
    shared.release("b")
    assert not host.memory


def test_bound_buffers_are_forgotten_between_clips(bundle, flavoured, gpu, example) -> None:
    store_plan(bundle, flavoured, "vae_decoder", settings=SMALL)
    one = example(count=1)
    with load(bundle, flavoured) as engine:
        engine.run(**one.inputs)
        engine.renew()
        with pytest.raises(ValueError, match="inputs not bound: latents, feature"):
            engine.enqueue(7)
        np.testing.assert_allclose(engine.run(**one.inputs)["image"], one.image, rtol=1e-5, atol=1e-6)


def test_the_engine_for_the_size_at_hand_is_loaded_one_at_a_time(bundle, flavoured, gpu, example) -> None:
    for settings in (SMALL, ProfileSettings("dynamic", 64, 64)):
        store_plan(bundle, flavoured, "vae_decoder", settings=settings)
    loads = fake_tensorrt.Runtime.deserialised
    with load(bundle, flavoured) as engine:
        assert loads == []  # which one is not known yet
        for count, height, width, deserialised in ((1, 3, 5, 1), (1, 6, 7, 2), (1, 8, 8, 2), (1, 3, 5, 3)):
            sized = example(count=count, height=height, width=width)
            np.testing.assert_allclose(engine.run(**sized.inputs)["image"], sized.image, rtol=1e-5, atol=1e-6)
            assert len(loads) == deserialised
        with pytest.raises(UserError, match="--image_height 32 to 64, not 72.: build with .*--image_height 72`"):
            engine.run(**example(count=1, height=9).inputs)


def test_a_single_engine_is_loaded_at_once_and_other_sizes_name_the_command(bundle, flavoured, gpu, example) -> None:
    store_plan(bundle, flavoured, "vae_decoder", settings=SMALL)
    with load(bundle, flavoured) as engine:
        assert fake_tensorrt.Runtime.deserialised == ["vae_decoder"]
        engine.prepare(N=1, h=3, w=5)
        said = "N1_h3_w5.plan: it is for N 1, not 2 and --image_height 24, not 32.: build with `vexpress .*--profile d"
        with pytest.raises(UserError, match=said):
            engine.run(**example(count=2, height=4).inputs)
        with pytest.raises(UserError, match="it is for N 1, not 9.: no build takes these sizes; use another --backend"):
            engine.run(**example(count=9).inputs)


def test_an_engine_that_was_built_since_is_loaded_once(bundle, flavoured, gpu, example) -> None:
    store_plan(bundle, flavoured, "vae_decoder", settings=SMALL)
    other = example(count=1, height=6, width=7)
    with load(bundle, flavoured) as engine:
        store_plan(bundle, flavoured, "vae_decoder", settings=ProfileSettings(image_width=56, image_height=48))
        for _ in range(3):
            np.testing.assert_allclose(engine.run(**other.inputs)["image"], other.image, rtol=1e-5, atol=1e-6)
        assert fake_tensorrt.Runtime.deserialised == ["vae_decoder"] * 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "sm86"}, "it is for sm86, this GPU is sm89"),
        ({"version": "11.3"}, "it is of .* 11.3, installed is 11.4"),
        ({"version": "11.5", "options": ("version_compatible",)}, "it is of .* 11.5, installed is 11.4"),
        ({"target": "sm75", "options": ("hardware_compatible",)}, "it is for sm75, this GPU is sm89"),
    ],
)
def test_what_does_not_fit_is_not_deserialised_and_told(bundle, flavoured, changes: dict, said: str) -> None:
    store_plan(bundle, flavoured, "vae_decoder", **changes)
    with pytest.raises(UserError, match=f"that runs here .*{said}.*: build with `vexpress .* --precision fp32.*`"):
        load(bundle, flavoured)
    assert fake_tensorrt.Runtime.deserialised == []


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "11.3", "options": ("version_compatible",)},
        {"target": "sm80", "options": ("hardware_compatible",)},
        {"target": "sm120", "options": ("hardware_compatible",)},
    ],
)
def test_compatible_engines_run_beyond_what_built_them(
    bundle, flavoured, gpu, example, changes: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEXPRESS_TRUST_ENGINES", "1")
    store_plan(bundle, flavoured, "vae_decoder", settings=SMALL, **changes)
    one = example(count=1)
    with load(bundle, flavoured) as engine:
        np.testing.assert_allclose(engine.run(**one.inputs)["image"], one.image, rtol=1e-5, atol=1e-6)


def test_a_cancelled_engine_is_as_good_as_new_for_the_next_clip(bundle, flavoured, gpu, example) -> None:
    store_plan(bundle, flavoured, "vae_decoder", settings=SMALL)
    one = example(count=1)
    with load(bundle, flavoured) as engine:
        engine.cancel()
        with pytest.raises(CancelledError):
            engine.run(**one.inputs)
        engine.renew()
        np.testing.assert_allclose(engine.run(**one.inputs)["image"], one.image, rtol=1e-5, atol=1e-6)
    assert fake_tensorrt.Runtime.deserialised == ["vae_decoder"]


@pytest.mark.parametrize("trust", [None, "", "0"])
def test_an_engine_that_brings_native_code_is_not_deserialised_unless_trusted(
    bundle, flavoured, trust: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trust is None:
        monkeypatch.delenv("VEXPRESS_TRUST_ENGINES", raising=False)
    else:
        monkeypatch.setenv("VEXPRESS_TRUST_ENGINES", trust)
    store_plan(bundle, flavoured, "vae_decoder", options=("version_compatible",))
    with pytest.raises(UserError, match="plan: this engine brings native code: set VEXPRESS_TRUST_ENGINES=1 to let"):
        load(bundle, flavoured)
    assert fake_tensorrt.Runtime.deserialised == []
    assert "  this engine brings native code: set VEXPRESS" in format_engines(list_engines(bundle.root), "none")
    monkeypatch.setenv("VEXPRESS_TRUST_ENGINES", "1")
    assert format_engines(list_engines(bundle.root), "none").splitlines()[1].endswith("  ok")


def test_a_bundle_without_engines_names_the_command(bundle: Bundle, flavoured: TensorRt) -> None:
    with pytest.raises(UserError, match="has no tensorrt.* engine of vae_decoder in fp32 that runs here: build with"):
        load(bundle, flavoured)


def test_a_flipped_byte_is_found_before_anything_is_deserialised(bundle, flavoured, gpu) -> None:
    path = store_plan(bundle, flavoured, "vae_decoder")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=f"{path}: the .*content.* has changed; build with `vexpress build .* --force`"):
        load(bundle, flavoured)
    assert fake_tensorrt.Runtime.deserialised == [] and not gpu.streams


def test_what_tensorrt_refuses_is_a_sentence_with_its_reason(bundle: Bundle, flavoured: TensorRt) -> None:
    store_plan(bundle, flavoured, "vae_decoder", content=b"whole, but no plan")
    said = "11.4 cannot load .*plan .Error Code 1: the plan's magic tag is.*: build with `vexpress build .* --force`"
    with pytest.raises(UserError, match=said):
        load(bundle, flavoured)


def test_an_engine_with_other_tensors_than_the_manifest_is_refused(bundle: Bundle, flavoured: TensorRt) -> None:
    store_plan(bundle, flavoured, "vae_decoder", renamed=True)
    with pytest.raises(UserError, match="the manifest disagree about image, other: build with `vexpress .* --force`"):
        load(bundle, flavoured)


def test_the_real_tensorrt_rtx_says_why_it_loads_nothing_without_a_driver(rtx: TensorRt, bundle: Bundle) -> None:
    build_engines(BuildSettings(bundle.root, RTX, "fp32", options=BuildOptions(("sm89",))))
    (stored,) = EngineStore(bundle).all()
    with pytest.raises(UserError, match=r"tensorrt-rtx 1\..* cannot load .*plan \(.*cudaError 35.*\): build it again"):
        LoadedPlan(rtx, stored, bundle.graph("vae_decoder", "fp32"))


def test_a_budget_lets_weights_stream_or_refuses(bundle: Bundle, flavoured: TensorRt) -> None:
    path = store_plan(bundle, flavoured, "vae_decoder")
    weights = path.stat().st_size
    load(bundle, flavoured, gpu_memory=weights + fake_tensorrt.NEEDED).close()
    with pytest.raises(UserError, match="0 MiB of --gpu_memory are left for it: build it with --weight_streaming"):
        load(bundle, flavoured, gpu_memory=1000)
    path = store_plan(bundle, flavoured, "vae_decoder", streaming=1000, padding="x" * 1000)
    whole = path.stat().st_size
    with load(bundle, flavoured, gpu_memory=whole + fake_tensorrt.NEEDED) as engine:
        assert engine.gpu_bytes == (whole, fake_tensorrt.NEEDED)
    allowed = whole - 900 + fake_tensorrt.NEEDED + fake_tensorrt.STREAMING
    with load(bundle, flavoured, gpu_memory=allowed) as engine:
        assert sum(engine.gpu_bytes) == allowed and engine.gpu_bytes[0] == whole - 900
    with pytest.raises(UserError, match="all weights streaming in, 0 MiB of .* left for it: use --save_gpu") as refusal:
        load(bundle, flavoured, gpu_memory=allowed - 200)
    assert str(refusal.value).endswith("use --save_gpu_memory, build for a smaller image, or allow more")


def test_load_engine_hands_the_budget_on(bundle: Bundle, flavoured: TensorRt) -> None:
    store_plan(bundle, flavoured, "vae_decoder")
    with pytest.raises(UserError, match="of --gpu_memory are left for it"):
        load_engine(bundle, "vae_decoder", backend=flavoured.backend, precision="fp32", gpu_memory=1000)


def test_what_rtx_compiled_is_kept_beside_the_plan(bundle: Bundle, gpu: HostDriver, caplog) -> None:
    caplog.set_level(logging.INFO, "vexpress")
    tensorrt = TensorRt(RTX, fake_tensorrt, "11.4")
    cache = store_plan(bundle, tensorrt, "vae_decoder").with_suffix(".jit")
    load(bundle, tensorrt).close()
    assert cache.read_bytes() == b"compiled for this GPU" and caplog.text == ""
    cache.write_bytes(b"of another GPU")
    load(bundle, tensorrt).close()
    assert "is not of this GPU or version: compiling again" in caplog.text
    assert cache.read_bytes() == b"compiled for this GPU"


def test_where_rtx_gives_nothing_to_keep_the_file_stays_as_it_was(bundle: Bundle, gpu: HostDriver, monkeypatch) -> None:
    tensorrt = TensorRt(RTX, fake_tensorrt, "11.4")
    cache = store_plan(bundle, tensorrt, "vae_decoder").with_suffix(".jit")
    cache.write_bytes(b"compiled for this GPU")
    monkeypatch.setattr(fake_tensorrt.IRuntimeCache, "serialize", lambda self: None)
    load(bundle, tensorrt).close()
    assert cache.read_bytes() == b"compiled for this GPU" and not gpu.memory


def test_full_tensorrt_needs_no_such_cache(bundle: Bundle, gpu: HostDriver) -> None:
    path = store_plan(bundle, TensorRt(TENSORRT, fake_tensorrt, "11.4"), "vae_decoder")
    load(bundle, TensorRt(TENSORRT, fake_tensorrt, "11.4")).close()
    assert not path.with_suffix(".jit").exists()


def test_arithmetic_is_the_graphs_own(bundle: Bundle, flavoured: TensorRt) -> None:
    with pytest.raises(UserError, match="computes in the graph's own precision, fp32, not in fp16: leave out the type"):
        load(bundle, flavoured, dtype="fp16")


def test_auto_takes_the_engines_in_the_bundle_where_all_graphs_have_one(bundle, flavoured, caplog) -> None:
    before = choose_engines(bundle, dtype="fp32")
    assert before.on_cpu
    store_plan(bundle, flavoured, "vae_decoder", target="sm86")
    caplog.set_level(logging.INFO, "vexpress")
    assert choose_engines(bundle, dtype="fp32") == before
    assert f"{flavoured.backend}'s engines are passed over" in caplog.text and "it is for sm86" in caplog.text
    store_plan(bundle, flavoured, "vae_decoder")
    reason = f"{flavoured.backend} 11.4 on stand-in: the bundle has engines for it"
    taken = EngineChoice(flavoured.backend, reason, "fp32", "fp32")
    for wishes in ({}, {"dtype": "fp32"}, {"device": "cuda"}, {"backend": flavoured.backend}):
        assert choose_engines(bundle, **wishes) == taken
    assert taken.gpu == 0 and not taken.on_cpu
    assert choose_engines(bundle, device="cpu", dtype="fp32") == before


def test_full_tensorrt_comes_before_rtx(bundle: Bundle, gpu: HostDriver) -> None:
    for backend in (RTX, TENSORRT):
        store_plan(bundle, TensorRt(backend, fake_tensorrt, "11.4"), "vae_decoder")
    assert choose_engines(bundle).backend == TENSORRT


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"dtype": "fp16"}, "in fp32 only; add it with `vexpress export"),
        ({"gpu_id": 1}, "--gpu_id 1: there is no such GPU; the driver lists one GPU: choose 0"),
        ({"backend": "tensorrt:one"}, "there is no backend 'tensorrt:one'"),
        ({"device": "cpu"}, "--backend tensorrt runs on a GPU, --device is cpu"),
        ({}, "has no tensorrt engine of vae_decoder in fp32 that runs here: build with"),
    ],
)
def test_what_cannot_be_had_is_refused(bundle: Bundle, gpu: HostDriver, wishes: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        choose_engines(bundle, **({"backend": "tensorrt"} | wishes))


@pytest.mark.parametrize("backend", [TENSORRT, RTX])
def test_without_a_gpu_generate_says_so_in_one_sentence(bundle, backend, tmp_path: Path, capsys, monkeypatch) -> None:
    from vexpress_trt.engines import selection

    monkeypatch.setattr(selection, "gpu_status", lambda: SimpleNamespace(devices=(), reason="no NVIDIA driver"))
    for name in ("face.png", "speech.wav"):
        (tmp_path / name).write_bytes(b"x")
    inputs = ["--reference_image_path", str(tmp_path / "face.png"), "--audio_path", str(tmp_path / "speech.wav")]
    command = ["generate", *inputs, "--output_path", str(tmp_path / "o.mp4"), "--bundle", str(bundle.root)]
    assert cli.main([*command, "--backend", backend]) == 2
    said = capsys.readouterr().err
    assert f"the backend {backend} cannot run here: no NVIDIA driver" in said and said.count("\n") == 1


@pytest.mark.parametrize("name", ["fixed", "N8", "B1_F24_h64_w64", "S800-128000-960000"])
def test_a_profile_is_known_from_its_name(name: str) -> None:
    profile = Profile.parse(name)
    assert profile.name == name
    assert profile.takes({"B": 1, "F": 24, "h": 64, "w": 64, "N": 8, "S": 30000})
    assert name == "fixed" or not profile.takes({"B": 2, "F": 25, "h": 1, "w": 1, "N": 9, "S": 960001})
    for damaged in ("N", "8N", "N1-2", ""):
        with pytest.raises(ValueError, match="is not the name of a profile"):
            Profile.parse(damaged)
