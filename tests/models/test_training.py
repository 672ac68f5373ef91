"""What is trained is what the runtime computes, and training goes on where it was stopped."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vexpress_trt.export.nets.denoiser import Denoiser
from vexpress_trt.export.nets.library import VaeDecoder, VaeEncoder
from vexpress_trt.export.nets.reference import Reference
from vexpress_trt.models.mini.autoencoder import Autoencoder, to_frames, to_tensor
from vexpress_trt.models.mini.listening import Listener, normalise, windows_of
from vexpress_trt.models.mini.networks import SmallVExpress, Window
from vexpress_trt.models.mini.package import write_checkpoints
from vexpress_trt.models.mini.sizes import LATENT_SCALE, MINI
from vexpress_trt.models.mini.threads import threads_beside
from vexpress_trt.models.mini.training import Plan, Run, averaged_weights, generator, progress_of, write_weights
from vexpress_trt.runtime.audio_features import AudioFeatures


@pytest.fixture(scope="module")
def model() -> SmallVExpress:
    """Random weights, those that training starts at zero included."""
    torch.manual_seed(0)
    model = SmallVExpress().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "temporal_transformer.proj_out" in name:
            parameter.normal_(0, 0.1)
    return model


def window(keep: tuple[float, float, float]) -> Window:
    """One window of three frames on 8 x 8 latents."""
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random)

    return Window(
        latents=normal(1, 3, 4, 8, 8),
        timestep=torch.tensor([700.0]),
        portrait=normal(1, 4, 8, 8),
        audio=normal(1, 3, 10, MINI.audio_hidden),
        guide=torch.rand(1, 3, 3, 64, 64, generator=random),
        keep=torch.tensor([keep]),
    )


def test_trained_networks_equal_the_deployed_ones_in_both_halves(model):
    networks = MINI.networks()
    state = model.denoising_unet.state_dict()
    deployed = Denoiser.from_state_dict(networks.unet, networks.motion, state, guided=True)
    reference = Reference.from_state_dicts(networks.unet, model.reference_net.state_dict(), state)
    given = window((1.0, 1.0, 1.0))
    tokens = model.audio_projection(given.audio[0])[None]
    feature = model.v_kps_guider(given.guide[0])[None]
    weights = torch.tensor([0.95]), torch.tensor([3.0])
    both = deployed(given.latents, given.timestep, tokens, feature, reference(given.portrait), *weights)[0]

    model.denoising_unet.moving = True
    torch.testing.assert_close(model(given, 0.95, 3.0)[0], both[1], rtol=1e-4, atol=1e-4)
    without = model(replace(given, keep=torch.zeros(1, 3)), 0.95, 3.0)[0]
    torch.testing.assert_close(without, both[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("withheld", range(3))
def test_a_withheld_condition_has_no_influence(model, withheld):
    keep = [1.0, 1.0, 1.0]
    keep[withheld] = 0.0
    given = window(tuple(keep))
    changed = replace(given, **{name: getattr(given, name) + 1 for name in [("portrait", "audio", "guide")[withheld]]})
    torch.testing.assert_close(model(given), model(changed))
    heard = replace(given, keep=torch.ones(1, 3))
    assert (model(heard) - model(given)).abs().max() > 1e-4


def test_frames_are_independent_without_motion_modules(model):
    given = window((1.0, 1.0, 1.0))
    changed = replace(given, latents=given.latents + torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1, 1))
    model.denoising_unet.moving = False
    torch.testing.assert_close(model(given)[:, 1:], model(changed)[:, 1:])
    model.denoising_unet.moving = True
    assert (model(given)[:, 1:] - model(changed)[:, 1:]).abs().max() > 1e-4


def test_official_autoencoder_has_scaled_latents_of_the_trained_one():
    torch.manual_seed(3)
    model = Autoencoder().eval().requires_grad_(False)
    model.norm.running_mean.copy_(torch.tensor([0.5, -1.0, 2.0, 0.0]))
    model.norm.running_var.copy_(torch.tensor([0.2, 3.0, 1.0, 9.0]))
    state = model.official_state()
    encoder = VaeEncoder.from_state_dict(MINI.vae_json(), state)
    decoder = VaeDecoder.from_state_dict(MINI.vae_json(), state)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    latent = model.encode(image)
    torch.testing.assert_close(encoder(image) * LATENT_SCALE, latent, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoder(latent / LATENT_SCALE), model.decode(latent), rtol=1e-4, atol=1e-4)


def test_frames_and_tensors_are_inverse():
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    assert np.abs(to_frames(to_tensor(frames)).astype(int) - frames).max() <= 1


def test_rows_and_windows_are_those_of_the_runtime():
    torch.manual_seed(5)
    listener = Listener().eval().requires_grad_(False)
    waveform = torch.from_numpy(normalise(np.random.default_rng(0).standard_normal(16000).astype(np.float32)))[None]
    rows = listener.rows(waveform, 25)[0].numpy()
    hidden = listener.encoder(waveform)[0].numpy()
    expected = AudioFeatures.stretched(len(hidden), 25, 2).windows(0, 25, hidden)
    np.testing.assert_allclose(windows_of(rows, np.arange(25)), expected, atol=1e-5)


def test_packaged_weights_load_as_official_checkpoints(model, tmp_path):
    parts = {"vae": Autoencoder(), "encoder": Listener(), "motion": model}
    for name, modules in parts.items():
        write_weights(tmp_path / "runs" / name, modules.state_dict(), step=1, done=1.0)
    loaded = write_checkpoints(tmp_path / "runs", "motion", tmp_path / "checkpoints")
    assert loaded.networks.unet == MINI.networks().unet
    assert not loaded.random_weights
    assert sum(record.size for record in loaded.files.values()) < 20e6
    name = "conv_in.weight"
    torch.testing.assert_close(
        loaded.denoising_unet[name].float(), model.denoising_unet.conv_in.weight, atol=1e-3, rtol=0
    )
    with pytest.raises(FileExistsError, match="not empty"):
        write_checkpoints(tmp_path / "runs", "motion", tmp_path / "checkpoints")


def run_of(folder, steps: int | None) -> tuple[Run, nn.Module]:
    torch.manual_seed(6)
    module = nn.Linear(3, 1)
    return Run(folder, module, Plan(rate=0.1, steps=steps, warm_up=2, average=0.5)), module


def train(run: Run, module: nn.Module, *, seconds: float = 60.0, spoil_at: int = -1) -> bool:
    def draw(step: int) -> list[torch.Tensor]:
        inputs = torch.randn(8, 3, generator=generator(0, step))
        return [inputs * float("nan") if step == spoil_at else inputs]

    def loss(inputs: torch.Tensor) -> torch.Tensor:
        error = (module(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
        return torch.stack([error, error.sqrt()])

    return run.train(draw, loss, ("loss", "deviation"), dict, seconds)


def test_a_run_learns_until_its_last_step(tmp_path):
    run, module = run_of(tmp_path / "run", 200)
    assert train(run, module)
    assert progress_of(tmp_path / "run") == (200, 1.0)
    torch.testing.assert_close(averaged_weights(tmp_path / "run")["weight"], torch.ones(1, 3), atol=0.02, rtol=0)


def test_a_stopped_run_goes_on_from_its_averaged_weights(tmp_path):
    first, module = run_of(tmp_path / "run", 10**9)
    assert not train(first, module, seconds=0.2)
    second, resumed = run_of(tmp_path / "run", 10**9)
    assert second.step == first.step > 0
    for name, tensor in averaged_weights(tmp_path / "run").items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor)
    assert second.plan.rate_at(second.done, 0) < second.plan.rate_at(second.done, 50)  # and warms up again


def test_a_timed_plan_ends_with_its_time(tmp_path):
    run, module = run_of(tmp_path / "run", None)
    assert train(run, module, seconds=0.3)
    assert run.done == 1


def test_numbers_that_are_not_finite_end_a_run_and_leave_the_weights_before_them(tmp_path):
    run, module = run_of(tmp_path / "run", 10**9)
    train(run, module, seconds=0.1)
    kept = averaged_weights(tmp_path / "run")
    spoilt, module = run_of(tmp_path / "run", 10**9)
    with pytest.raises(FloatingPointError, match="has {'loss': nan"):
        train(spoilt, module, spoil_at=spoilt.step)
    torch.testing.assert_close(averaged_weights(tmp_path / "run"), kept)


def test_a_plan_whose_last_weights_are_not_finite_is_not_finished(tmp_path):
    run, module = run_of(tmp_path / "run", 5)
    with pytest.raises(FloatingPointError, match="weights at step 5 are not finite"):
        train(run, module, spoil_at=3)
    assert progress_of(tmp_path / "run") == (0, 0.0)


def test_large_weights_are_written_in_parts_and_none_may_be_missing(tmp_path):
    state = {f"tensor{number}": torch.randn(2_000_000) for number in range(3)}
    write_weights(tmp_path, state, step=3, done=0.5)
    parts = sorted(tmp_path.glob("*.safetensors"))
    assert len(parts) == 3
    torch.testing.assert_close(averaged_weights(tmp_path), state)
    parts[1].unlink()
    with pytest.raises(FileNotFoundError, match="lacks weights"):
        averaged_weights(tmp_path)


def test_the_rate_rises_stays_and_falls():
    plan = Plan(rate=1.0, warm_up=10, decay=0.2)
    assert plan.rate_at(0.0, 0) == pytest.approx(0.1)
    assert plan.rate_at(0.5, 50) == 1.0
    assert plan.rate_at(0.9, 90) == pytest.approx(0.5)
    assert plan.rate_at(1.0, 100) == 0


@pytest.mark.parametrize("others, expected", [(0.0, 2), (0.4, 2), (0.9, 1), (2.0, 1)])
def test_threads_are_what_others_leave(others, expected):
    assert threads_beside(others, cores=2, limit=2) == expected
