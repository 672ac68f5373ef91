"""What a clip takes of a GPU's memory, and that it is refused where less is allowed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("av", reason="needs media input")

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.footprint import Footprint
from vexpress_trt.engines.manifest import GraphSpec, SchedulerConfig, TensorSpec
from vexpress_trt.engines.selection import EngineChoice
from vexpress_trt.runtime.cuda import budget as budget_module
from vexpress_trt.runtime.cuda.budget import GpuNeed, gpu_need, limited, require_budget
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.runtime.scheduler import make_scheduler
from vexpress_trt.runtime.windows import WindowPlan, live_windows

MIB = 2**20
CHOICE = EngineChoice("torch-cuda", "as asked", "fp16", "fp16")


def tensors(*entries: tuple) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(*entry) for entry in entries)


def graph(name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> GraphSpec:
    return GraphSpec(name, "fp16", f"{name}.onnx", inputs, outputs, (f"{name}.data",))


# The official model's sizes in FP16, its files in MiB.
FILES = {"denoiser_guided": 2600, "denoiser_single": 2600, "kps_guider": 2, "vae_decoder": 100, "audio_encoder": 190}
LATENT = (4, "h", "w")
CALL = tensors(
    ("latents", "float32", ("B", "F", *LATENT)),
    ("timestep", "float32", ("B",)),
    ("tokens", "float16", ("B", "F", 5, 768)),
    ("kps_feature", "float16", ("B", "F", 320, "h", "w")),
    ("key_00", "float16", (1, 8, "h*w", 40)),
    ("value_00", "float16", (1, 8, "h*w", 40)),
)
GRAPHS = {
    "denoiser_guided": graph("denoiser_guided", CALL, tensors(("prediction", "float32", ("B", 2, "F", *LATENT)))),
    "denoiser_single": graph("denoiser_single", CALL, tensors(("prediction", "float32", ("B", 1, "F", *LATENT)))),
    "kps_guider": graph(
        "kps_guider",
        tensors(("rgb", "float32", ("N", 3, "8*h", "8*w"))),
        tensors(("feature", "float16", ("N", 320, "h", "w"))),
    ),
    "vae_decoder": graph(
        "vae_decoder",
        tensors(("latents", "float32", ("N", *LATENT))),
        tensors(("image", "float32", ("N", 3, "8*h", "8*w"))),
    ),
    "audio_encoder": graph("audio_encoder", tensors(("waveform", "float32", (1, "S"))), ()),
}
BUNDLE = SimpleNamespace(
    graph=lambda name, precision: GRAPHS[name],
    manifest=SimpleNamespace(
        files={f"{name}.data": SimpleNamespace(size=size * MIB) for name, size in FILES.items()},
        model=SimpleNamespace(feature_channels=320, vae_scale_factor=8),
    ),
)


def clip(**changed: object) -> dict:
    plan, steps = changed.pop("plan", WindowPlan(24, 4, 15)), 25
    batch = changed.get("window_batch", 1)
    return {
        "denoisers": ["denoiser_guided"] * steps, "plan": plan, "scheduler": make_scheduler(SchedulerConfig(), steps),
        "shape": (4, 64, 64), "live_windows": live_windows(plan, steps, batch), "window_batch": 1,
        "save_gpu_memory": False, **changed,
    }  # fmt: skip


def need(choice: EngineChoice = CHOICE, **changed: object) -> GpuNeed:
    return gpu_need(BUNDLE, choice, **clip(**changed))


def test_the_official_model_takes_what_was_measured_on_a_gpu() -> None:
    """torch had 5930 MiB in use at most around such a call, before what allocators round up."""
    (denoiser,) = (engine for engine in need().engines if engine.turn == "denoiser")
    assert (denoiser.weights + denoiser.working + denoiser.kept) / 1.1 / MIB == pytest.approx(5930, rel=0.1)


def test_what_lowers_it() -> None:
    usual = need().total
    assert need(save_gpu_memory=True).total < usual - 100 * MIB
    assert need(plan=WindowPlan(12, 4, 36)).total < usual - 1000 * MIB
    assert need(shape=(4, 48, 48)).total < usual - 1000 * MIB
    assert need(denoisers=["denoiser_single"] * 25).total < usual - 1000 * MIB


def test_what_raises_it() -> None:
    usual = need().total
    assert need(window_batch=2).total > usual + 3000 * MIB
    assert need(replace(CHOICE, dtype="fp32")).total > usual + 5000 * MIB
    assert need(denoisers=["denoiser_guided", "denoiser_single"]).total > usual + 2600 * MIB
    assert need(samples=18 * 16000).total > usual + 200 * MIB  # the audio encoder beside the loop


def test_denoisers_share_working_memory_but_for_onnxruntimes() -> None:
    both = ["denoiser_guided", "denoiser_single"]
    guided = need().activations
    assert need(denoisers=both).activations == guided
    sessions = replace(CHOICE, backend="onnxruntime-cuda")
    assert need(sessions, denoisers=both).activations > need(sessions).activations + 1500 * MIB


def test_a_clips_length_costs_no_gpu_memory() -> None:
    assert need(plan=WindowPlan(24, 4, 100)) == need(plan=WindowPlan(24, 4, 10_000))


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        (1 << 20, "fewer --context_frames, --window_batch 1 or a smaller image lower that"),
        (-1, r"--save_gpu_memory lowers that to \d\.\d GiB"),
    ],
)
def test_a_clip_that_needs_more_is_refused_and_told_what_lowers_it(allowed: int, words: str) -> None:
    budget = allowed if allowed > 0 else need().total - 1
    with pytest.raises(UserError, match=rf"needs about \d\.\d GiB .*weights 2\.9 GiB.* are allowed: .*{words}"):
        require_budget(budget, BUNDLE, CHOICE, **clip())
    assert require_budget(need().total, BUNDLE, CHOICE, **clip()) == need()


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Callable[..., EngineChoice]:
    """TensorRT with plans as large as the files, of which those named may stream their weights."""

    def make(streamable: tuple[str, ...] = (), working: int | None = None) -> EngineChoice:
        monkeypatch.setattr(
            budget_module,
            "footprint",
            lambda bundle, choice, graph, sizes: Footprint(FILES[graph] * MIB, working, True, graph in streamable),
        )
        return replace(CHOICE, backend="tensorrt")

    return make


def test_plans_are_counted_as_they_are(plans: Callable) -> None:
    estimated = need().weights
    assert need(plans()).weights < 2750 * MIB < estimated
    assert need(plans(working=MIB)).activations == 3 * MIB  # guider, denoiser, decoder


def test_weights_that_may_stream_make_room_and_the_user_is_told(
    plans: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    whole = need(plans()).total
    with pytest.raises(UserError, match="or a smaller image .*build --weight_streaming --force` keep weights in"):
        require_budget(whole - 2000 * MIB, BUNDLE, plans(), **clip())
    streaming = plans(("denoiser_guided",))
    assert require_budget(whole, BUNDLE, streaming, **clip()).total == whole and not caplog.text
    assert require_budget(whole - 2000 * MIB, BUNDLE, streaming, **clip()).total == whole
    assert "by the estimate 2.0 GiB of the weights stay in the host's memory and cross the bus" in caplog.text
    assert "slower; --gpu_memory 9GB avoids that" in caplog.text
    require_budget(whole - 100 * MIB, BUNDLE, streaming, **clip())
    assert "slower; --save_gpu_memory avoids that" in caplog.text
    with pytest.raises(UserError, match=r"6\.\d GiB with weights streaming in, and 5\.\d GiB are allowed"):
        require_budget(whole - 2600 * MIB, BUNDLE, streaming, **clip())


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8 << 30), ("8 GiB", 8 << 30), ("6000mb", 6000 << 20), ("1.5G", 3 << 29)]
)
def test_a_budget_is_a_size_with_a_unit(text: str, size: int) -> None:
    assert GenerationRequest(gpu_memory=text).gpu_memory_bytes == size


@pytest.mark.parametrize("text", ["8", "GB", "-1GB", "0GB", "8XB", "nan GB", "9" * 400 + "GB"])
def test_anything_else_is_refused(text: str) -> None:
    request = GenerationRequest(Path("a.png"), Path("a.wav"), gpu_memory=text)
    with pytest.raises(UserError, match=f"--gpu_memory {text}: expected a size such as 8GB"):
        request.validate()


def test_torch_is_kept_within_what_the_budget_leaves_beside_our_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    limits = []
    monkeypatch.setattr("vexpress_trt.engines.torch_cuda_engine.limit_memory", lambda *given: limits.append(given))
    usual = need()
    with pytest.raises(KeyError), limited(CHOICE, 9 << 30, usual):
        ((backend, size),) = limits
        assert backend == "torch-cuda"
        assert usual.weights + usual.activations < size < (9 << 30) - usual.buffers
        raise KeyError
    assert limits[1:] == [("torch-cuda", None)]
    with limited(replace(CHOICE, backend="tensorrt"), 9 << 30, usual):
        assert len(limits) == 2
