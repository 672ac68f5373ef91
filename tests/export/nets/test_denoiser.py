"""The denoising network with its savings: equal to the original, to the plain form, and independent of batching."""

import pytest
import torch

from vexpress_trt.export.nets.denoiser import Denoiser
from vexpress_trt.export.nets.plain import PlainDenoiser
from vexpress_trt.export.nets.reference import Reference, ReferenceNet

WEIGHTS = {"out_w1_1": (1.0, 1.0), "out_w095_3": (0.95, 3.0)}


@pytest.fixture(scope="module")
def build(configs, denoiser_weights):
    """guided -> the denoiser of the tiny golden model."""
    return lambda guided, kind=Denoiser: kind.from_state_dict(
        configs.unet, configs.motion, denoiser_weights, guided=guided
    )


@pytest.fixture(scope="module")
def taps_net(configs, weights):
    return ReferenceNet.from_state_dict(configs.unet, weights["reference_net"])


def scalars(*values):
    return [torch.tensor([value]) for value in values]


def random_inputs(batch, frames, height, width):
    """(latents, timestep, tokens, kps feature), all windows different, and a reference latent."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    inputs = (
        noise(batch, frames, 4, height, width),
        torch.tensor([961.0, 41.0, 500.0])[:batch],
        noise(batch, frames, 5, 48),
        noise(batch, frames, 32, height, width),
    )
    return inputs, noise(1, 4, height, width)


@pytest.fixture(scope="module")
def guided_golden(golden, reference):
    """The golden guided call as (run a denoiser on latents of half `i`, golden arrays).

    The golden latents of both halves differ on purpose, while a denoiser starts both halves from the same ones: the
    result for half i is output i of a run on half i's latents.
    """
    arrays = golden("denoising_unet_cfg")
    keys_values = reference(golden("reference_net")["in_latents"])
    tokens = arrays["audio_tokens"].unflatten(0, (2, 1, -1))[1]
    kps_feature = arrays["kps_features"].transpose(1, 2)[1:]

    def run(denoiser, half, weights):
        latents = arrays["latents"].transpose(1, 2)[half : half + 1]
        timestep = arrays["timestep"].reshape(1)
        return denoiser(latents, timestep, tokens, kps_feature, keys_values, *scalars(*weights))

    return run, arrays


@pytest.mark.parametrize("name", WEIGHTS)
def test_guided_prediction_equals_the_original(build, guided_golden, assert_golden, name):
    run, arrays = guided_golden
    for half in (0, 1):
        prediction = run(build(True), half, WEIGHTS[name])
        assert prediction.shape == (1, 2, 12, 4, 16, 16) and prediction.dtype == torch.float32
        assert_golden(prediction[0, half].transpose(0, 1), arrays[name][half])


def test_every_submodule_matches_the_trace(build, guided_golden, trace, record_outputs, assert_golden):
    run, _ = guided_golden
    denoiser, outputs = build(True), ({}, {})
    for half in (0, 1):
        record_outputs(denoiser, outputs[half])  # the last hooks attached write last, into this half's dictionary
        run(denoiser, half, WEIGHTS["out_w095_3"])
        if half == 0:
            first = dict(outputs[0])
    outputs = (first, outputs[1])
    checked = []
    for entry in trace("denoising_unet"):
        name = entry["name"]
        if name not in outputs[0]:
            continue
        halves = [outputs[half][name] for half in (0, 1)]
        if halves[0].shape[0] == 24:  # unconditional frames, then conditional ones
            halves = [halves[half].unflatten(0, (2, 12))[half] for half in (0, 1)]
        if halves[0].ndim == 4:
            halves = [output.transpose(0, 1) for output in halves]
        elif name == "time_embedding":
            halves = [output[0] for output in halves]
        output = torch.stack(halves)
        assert list(output.shape) == entry["shape"], name
        assert_golden(output.flatten()[entry["flat_index"]], torch.tensor(entry["values"]))
        checked.append(name)
    # All but the blocks as a whole, which are run layer by layer.
    blocks = [entry["name"] for entry in trace("denoising_unet") if entry["name"] not in checked]
    assert blocks == [f"down_blocks.{i}" for i in range(4)] + ["mid_block"] + [f"up_blocks.{i}" for i in range(4)]


def test_single_prediction_at_an_odd_size_equals_the_original(build, assert_golden_at_odd_size):
    assert_golden_at_odd_size(build(False))


@pytest.mark.parametrize("guided", [True, False])
def test_exact_form_equals_plain_form(build, reference, taps_net, guided):
    inputs, portrait = random_inputs(batch=2, frames=3, height=12, width=10)
    weights = scalars(0.95, 3.0)
    exact = build(guided)(*inputs, reference(portrait), *weights)
    plain = build(guided, PlainDenoiser)(*inputs, taps_net(portrait), *weights)
    torch.testing.assert_close(exact, plain, rtol=1e-4, atol=2e-5)


def test_windows_of_a_batch_do_not_see_each_other(build, reference):
    inputs, portrait = random_inputs(batch=3, frames=2, height=9, width=16)
    denoiser, keys_values, weights = build(True), reference(portrait), scalars(0.95, 3.0)
    together = denoiser(*inputs, keys_values, *weights)
    alone = [denoiser(*(tensor[i : i + 1] for tensor in inputs), keys_values, *weights) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=2e-5)


def test_single_form_is_the_conditional_half_of_the_guided_form(build, reference):
    inputs, portrait = random_inputs(batch=1, frames=2, height=9, width=9)
    keys_values, weights = reference(portrait), scalars(0.95, 3.0)
    guided, single = (build(flag)(*inputs, keys_values, *weights) for flag in (True, False))
    torch.testing.assert_close(single[:, 0], guided[:, 1], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_stays_close(build, reference, configs, weights, dtype):
    """Signal-to-noise ratio against float32 near what the formats' 11 and 8 bits of mantissa allow."""
    inputs, portrait = random_inputs(batch=1, frames=2, height=12, width=12)
    weight_scalars, keys_values = scalars(0.95, 3.0), reference(portrait)
    exact = build(True)(*inputs, keys_values, *weight_scalars)
    states = (
        {key: tensor.to(dtype) for key, tensor in weights[part].items()} for part in ("reference_net", "denoising_unet")
    )
    low_keys_values = Reference.from_state_dicts(configs.unet, *states)(portrait)
    assert {tensor.dtype for tensor in low_keys_values} == {dtype}
    prediction = build(True).to(dtype)(*inputs, low_keys_values, *weight_scalars)
    assert prediction.dtype == torch.float32
    decibels = 10 * torch.log10(exact.square().mean() / (prediction - exact).square().mean())
    assert decibels > {torch.float16: 45, torch.bfloat16: 27}[dtype]


def test_epsilons_of_group_norms(build):
    """1e-6 where a transformer begins, the configuration's elsewhere: too small a difference to show in the goldens."""
    norms = {name: norm.eps for name, norm in build(True).named_modules() if isinstance(norm, torch.nn.GroupNorm)}
    transformers = {name for name in norms if "attentions" in name or "motion_modules" in name}
    assert {norms[name] for name in transformers} == {1e-6}
    assert {norms[name] for name in norms.keys() - transformers} == {1e-5}


def test_a_missing_weight_is_named(configs, denoiser_weights):
    incomplete = dict(denoiser_weights)
    del incomplete["mid_block.resnets.0.conv1.weight"]
    with pytest.raises(RuntimeError, match="mid_block.resnets.0.conv1.weight"):
        Denoiser.from_state_dict(configs.unet, configs.motion, incomplete, guided=True)
