"""The library-backed networks against the original's outputs."""

import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from vexpress_trt.engines.errors import UserError
from vexpress_trt.export.nets.library import (
    AudioEncoder,
    VaeDecoder,
    VaeEncoder,
    audio_encoder_shapes,
    fold_weight_norm,
    vae_shapes,
)


@pytest.fixture
def audio(library_weights):
    config, state = library_weights("wav2vec2-base-960h")
    return config, {key.removeprefix("wav2vec2."): tensor for key, tensor in state.items()}


def test_audio_features_equal_the_original(audio, golden, assert_golden):
    arrays = golden("wav2vec2")
    hidden = AudioEncoder.from_state_dict(*audio)(arrays["input_values"])
    assert_golden(hidden, arrays["last_hidden_state"])


@pytest.mark.parametrize("stable", [False, True])
def test_audio_encoder_equals_the_library(stable):
    sizes = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "conv_dim": (8,) * 7, "num_conv_pos_embedding_groups": 4, "num_conv_pos_embeddings": 16,
        "do_stable_layer_norm": stable, "feat_extract_norm": "layer" if stable else "group",
    }  # fmt: skip
    torch.manual_seed(0)
    model, waveform = Wav2Vec2Model(Wav2Vec2Config(**sizes)).eval(), torch.randn(1, 3000)
    with torch.no_grad():
        expected = model(waveform).last_hidden_state
    actual = AudioEncoder.from_state_dict(sizes, model.state_dict())(waveform)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def test_both_namings_of_the_weight_norm_fold_to_the_same_weight(audio):
    _, state = audio
    prefix = "encoder.pos_conv_embed.conv"
    renamed = dict(state)
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        renamed[f"{prefix}.parametrizations.weight.{new}"] = renamed.pop(f"{prefix}.{old}")
    folded = fold_weight_norm(state)
    assert torch.equal(folded[f"{prefix}.weight"], fold_weight_norm(renamed)[f"{prefix}.weight"])
    scale, direction = state[f"{prefix}.weight_g"], state[f"{prefix}.weight_v"]
    tap = scale[0, 0, 7] * direction[:, :, 7] / direction[:, :, 7].norm()
    torch.testing.assert_close(folded[f"{prefix}.weight"][:, :, 7], tap)
    assert fold_weight_norm(folded).keys() == folded.keys()


def test_an_audio_adapter_is_refused(audio):
    config, state = audio
    with pytest.raises(UserError, match="add_adapter"):
        AudioEncoder.from_state_dict(config | {"add_adapter": True}, state)


def test_images_and_latents_equal_the_original(library_weights, golden, assert_golden):
    config, state = library_weights("sd-vae-ft-mse")
    arrays = golden("vae")
    assert_golden(VaeEncoder.from_state_dict(config, state)(arrays["enc_image"]), arrays["enc_mean"])
    assert_golden(VaeDecoder.from_state_dict(config, state)(arrays["dec_latent"]), arrays["dec_image"])


def test_expected_shapes_are_those_of_the_checkpoints(library_weights, audio):
    config, state = library_weights("sd-vae-ft-mse")
    assert vae_shapes(config) == {key: tuple(tensor.shape) for key, tensor in state.items()}
    config, state = audio
    expected = audio_encoder_shapes(config)
    plain = {key for key in expected if "parametrizations" not in key}
    assert {key: expected[key] for key in plain} == {
        key: tuple(state[key].shape)
        for key in state
        if not key.startswith("lm_head") and key != "masked_spec_embed" and "weight_" not in key
    }
