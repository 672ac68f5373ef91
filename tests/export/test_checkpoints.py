"""The official checkpoints folder: every known variant loads, everything else is listed."""

import json
import shutil

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import torch
from safetensors.torch import load_file, save_file

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import sha256_file
from vexpress_trt.export import checkpoints as official
from vexpress_trt.export.checkpoints import load_checkpoints
from vexpress_trt.export.nets.audio_projection import AudioProjection
from vexpress_trt.export.nets.denoiser import Denoiser
from vexpress_trt.export.nets.guider import KpsGuider
from vexpress_trt.export.nets.layout import reference_net_unused_keys
from vexpress_trt.export.nets.library import AudioEncoder, VaeDecoder, VaeEncoder
from vexpress_trt.export.nets.reference import Reference
from vexpress_trt.export.random_model import RandomModel
from vexpress_trt.export.random_weights import random_shapes, write_random_checkpoints

SMALL = RandomModel(
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    heads=4,
    cross_attention_dim=40,
    unet_groups=16,
    max_context_frames=20,
    guider_channels=(8, 16, 24, 32),
    projection_dim=56,
    projection_depth=3,
    projection_heads=2,
    vae_channels=(16, 32),
    vae_layers=1,
    vae_groups=8,
    audio_channels=16,
    audio_hidden=48,
    audio_layers=1,
    audio_heads=2,
    audio_feed_forward=64,
)
VAE, AUDIO = official.VAE_WEIGHTS[0], official.AUDIO_WEIGHTS[0]
POSITION_CONV = "encoder.pos_conv_embed.conv."


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "small"
    write_random_checkpoints(folder, SMALL, seed=1)
    return folder


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "small")


def edit(folder, name, change):
    """Load one weight file, let `change` work on its state dict, save it again."""
    path = folder / name
    binary = path.suffix == ".bin"
    state = dict(torch.load(path, weights_only=True) if binary else load_file(path))
    state = change(state) or state
    path.unlink()
    torch.save(state, path) if binary else save_file(state, path)
    return state


def edit_json(folder, name, **values):
    config = json.loads((folder / name).read_text()) | values
    (folder / name).write_text(json.dumps(config))


def renamed(state, change):
    return {change(name): tensor for name, tensor in state.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def refusal(folder) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoints(folder)
    return str(caught.value)


# What loads


def test_all_sizes_are_read_from_configurations_and_weights(pristine):
    loaded = load_checkpoints(pristine)
    assert loaded.networks == SMALL.networks()
    assert loaded.unet_config == SMALL.unet_json()
    assert loaded.vae_config == SMALL.vae_json() and loaded.wav2vec2_config == SMALL.audio_json()


def test_the_weights_fit_the_networks(pristine):
    loaded, sizes = load_checkpoints(pristine), SMALL.networks()
    Denoiser.from_state_dict(sizes.unet, sizes.motion, loaded.denoising_unet, guided=True)
    Reference.from_state_dicts(sizes.unet, loaded.reference_net, loaded.denoising_unet)
    KpsGuider.from_state_dict(sizes.guider, loaded.v_kps_guider)
    AudioProjection.from_state_dict(sizes.projection, loaded.audio_projection)
    VaeEncoder.from_state_dict(loaded.vae_config, loaded.vae)
    VaeDecoder.from_state_dict(loaded.vae_config, loaded.vae)
    AudioEncoder.from_state_dict(loaded.wav2vec2_config, loaded.wav2vec2)


def test_half_precision_weights_stay_half_precision(pristine):
    loaded = load_checkpoints(pristine)
    for part in (loaded.reference_net, loaded.denoising_unet, loaded.v_kps_guider, loaded.audio_projection):
        assert {tensor.dtype for tensor in part.values()} == {torch.float16}
    assert {tensor.dtype for tensor in loaded.vae.values()} == {torch.float32}


def test_files_are_recorded_with_hash_and_size(pristine):
    loaded = load_checkpoints(pristine)
    assert set(loaded.files) == {entry[0] for entry in official.LAYOUT}
    path = pristine / official.DENOISING_UNET
    record = loaded.files[official.DENOISING_UNET]
    assert (record.sha256, record.size) == (sha256_file(path), path.stat().st_size)
    assert load_checkpoints(pristine, hash_files=False).files == {}


def test_random_weights_are_known_as_such(folder):
    assert load_checkpoints(folder).random_weights
    (folder / official.RANDOM_MARK).unlink()
    assert not load_checkpoints(folder).random_weights


def test_the_motion_module_may_also_be_in_the_denoising_file_and_its_own_file_wins(folder, pristine):
    motion = torch.load(folder / official.MOTION_MODULE, weights_only=True)
    edit(folder, official.DENOISING_UNET, lambda state: state | {name: tensor + 1 for name, tensor in motion.items()})
    assert_same(load_checkpoints(folder).denoising_unet, load_checkpoints(pristine).denoising_unet)


def test_motion_weights_that_only_the_denoising_file_has_are_used(folder, pristine):
    motion = torch.load(folder / official.MOTION_MODULE, weights_only=True)
    edit(folder, official.DENOISING_UNET, lambda state: state | motion)
    names = [name for name in motion if name.startswith("up_blocks")]
    edit(folder, official.MOTION_MODULE, lambda state: [state.pop(name) for name in names] and state)
    assert_same(load_checkpoints(folder).denoising_unet, load_checkpoints(pristine).denoising_unet)


@pytest.mark.parametrize("as_convolution", [False, True])
def test_the_autoencoders_old_attention_names_are_accepted(folder, pristine, as_convolution):
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def change(state):
        for new_name, old_name in old.items():
            state = renamed(state, lambda name, new=new_name, was=old_name: name.replace(new, was))
        if as_convolution:
            for name, tensor in state.items():
                if any(word in name for word in old.values()) and name.endswith("weight"):
                    state[name] = tensor[:, :, None, None].contiguous()
        return state

    assert sum(".query." in name for name in edit(folder, VAE, change)) == 4  # weight and bias in both mid blocks
    assert_same(load_checkpoints(folder).vae, load_checkpoints(pristine).vae)


@pytest.mark.parametrize(("names", "part"), [(official.VAE_WEIGHTS, "vae"), (official.AUDIO_WEIGHTS, "wav2vec2")])
def test_bin_in_place_of_safetensors(folder, pristine, names, part):
    torch.save(load_file(folder / names[0]), folder / names[1])
    (folder / names[0]).unlink()
    loaded = load_checkpoints(folder)
    assert_same(getattr(loaded, part), getattr(load_checkpoints(pristine), part))
    assert names[1] in loaded.files and names[0] not in loaded.files


def without_prefix_and_head(state):
    return {name.removeprefix("wav2vec2."): tensor for name, tensor in state.items() if not name.startswith("lm_head")}


def with_present_weight_norm(state):
    state = renamed(state, lambda name: name.replace("conv.weight_g", "conv.parametrizations.weight.original0"))
    return renamed(state, lambda name: name.replace("conv.weight_v", "conv.parametrizations.weight.original1"))


def with_plain_weight(state):
    scale, direction = (state.pop(f"wav2vec2.{POSITION_CONV}weight_{kind}") for kind in "gv")
    state[f"wav2vec2.{POSITION_CONV}weight"] = torch._weight_norm(direction, scale, 2)
    return state


def without_mask(state):
    del state["wav2vec2.masked_spec_embed"]


@pytest.mark.parametrize(
    "change",
    [without_prefix_and_head, with_present_weight_norm, with_plain_weight, without_mask],
    ids=lambda c: c.__name__,
)
def test_all_forms_of_the_audio_encoder_give_the_same_weights(folder, pristine, change):
    edit(folder, AUDIO, change)
    one, other = load_checkpoints(folder).wav2vec2, load_checkpoints(pristine).wav2vec2
    assert one.keys() == other.keys() and not any("lm_head" in name or "masked" in name for name in one)
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-7)


def test_the_positional_convolution_is_normed_per_tap(pristine):
    stored = load_file(pristine / AUDIO)
    scale, direction = (stored[f"wav2vec2.{POSITION_CONV}weight_{kind}"] for kind in "gv")
    weight = load_checkpoints(pristine).wav2vec2[f"{POSITION_CONV}weight"]
    torch.testing.assert_close(weight.norm(dim=(0, 1)), scale[0, 0].abs(), rtol=1e-5, atol=0)
    torch.testing.assert_close(weight[:, :, 7] * direction[0, 0, 7], direction[:, :, 7] * weight[0, 0, 7])


def test_the_reference_net_may_have_its_output_norm_and_may_lack_what_does_not_act(folder):
    norm = {f"conv_norm_out.{name}": torch.ones(32).half() for name in ("weight", "bias")}
    edit(folder, official.REFERENCE_NET, lambda state: state | norm)
    load_checkpoints(folder)
    unused = reference_net_unused_keys(SMALL.networks().unet)
    assert "conv_out.weight" in unused
    edit(folder, official.REFERENCE_NET, lambda state: {k: v for k, v in state.items() if k not in {*unused, *norm}})
    load_checkpoints(folder)


def test_the_golden_checkpoints_load(shared_dir):
    loaded = load_checkpoints(shared_dir / "golden" / "model_ckpts")
    sizes = loaded.networks
    assert sizes.unet.block_out_channels == (32, 32, 32, 64) and sizes.unet.cross_attention_dim == 48
    assert sizes.motion.max_length == 32 and sizes.projection.depth == 4
    assert len(loaded.reference_net) == 682 and len(loaded.denoising_unet) == 796 + 588
    assert not loaded.random_weights


# What is listed


def test_all_missing_files_are_listed_with_the_command_that_gets_them(folder):
    gone = [official.UNET_CONFIG, official.KPS_GUIDER, VAE, official.AUDIO_PREPROCESSOR]
    for name in gone:
        (folder / name).unlink()
    text = refusal(folder)
    assert all(str(folder / name) in text for name in [*gone, official.VAE_WEIGHTS[1]])
    assert "4 of 11" in text and f"vexpress fetch --checkpoints {folder}" in text


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    assert "no folder" in refusal(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_looked_up_is_one_sentence(tmp_path):
    endless = tmp_path / ("x" * 300)
    for call in (load_checkpoints, write_random_checkpoints):
        with pytest.raises(UserError, match=f"cannot read {endless}: file name too long"):
            call(endless)


def test_every_missing_unexpected_and_misshaped_tensor_is_listed_by_file(folder):
    def spoil(missing, misshaped):
        def change(state):
            del state[missing]
            state["stranger"] = torch.ones(1)
            state[misshaped] = torch.ones(3, 2)

        return change

    spoilt = {
        official.REFERENCE_NET: ("conv_in.bias", "down_blocks.0.resnets.0.conv1.bias"),
        official.DENOISING_UNET: ("conv_norm_out.bias", "mid_block.attentions.0.proj_in.bias"),
        official.MOTION_MODULE: (
            "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",
            "mid_block.motion_modules.0.temporal_transformer.proj_in.weight",
        ),
        official.KPS_GUIDER: ("blocks.2.bias", "blocks.4.bias"),
        official.AUDIO_PROJECTION: ("norm_out.bias", "layers.1.0.to_kv.weight"),
        VAE: ("decoder.conv_in.bias", "encoder.mid_block.attentions.0.to_q.weight"),
        AUDIO: ("wav2vec2.encoder.layer_norm.bias", "wav2vec2.encoder.layers.0.attention.q_proj.weight"),
    }
    for name, (missing, misshaped) in spoilt.items():
        edit(folder, name, spoil(missing, misshaped))
    text = refusal(folder)
    for name, (missing, misshaped) in spoilt.items():
        section = text.split(f"  {name}\n")[1].split("\n  v-")[0].split("\n  sd-")[0].split("\n  wav2vec2-")[0]
        assert f"missing (1): {missing.removeprefix('wav2vec2.')}\n" in section
        assert "unexpected (1): stranger\n" in section
        assert f"wrong shape (1): {misshaped} is [3, 2], expected [" in section
    assert text.endswith(f"vexpress fetch --checkpoints {folder}")


def test_missing_tensors_that_tell_sizes_do_not_hide_the_others(folder):
    guider = ["conv_in.weight", "blocks.1.weight", "conv_out.weight"]
    projection = ["latents", "pos_emb.weight", "layers.0.0.to_q.weight", "layers.0.1.1.weight", "proj_out.weight"]
    edit(folder, official.KPS_GUIDER, lambda state: [state.pop(name) for name in guider] and state)
    edit(folder, official.AUDIO_PROJECTION, lambda state: [state.pop(name) for name in projection] and state)
    text = refusal(folder)
    assert f"missing ({len(guider)}): " in text and f"missing ({len(projection)}): " in text
    assert all(name in text for name in guider + projection)
    assert "wrong shape" not in text and "unexpected" not in text


def test_long_lists_are_cut_and_counted(folder):
    edit(folder, official.DENOISING_UNET, lambda state: {"conv_in.weight": state["conv_in.weight"]})
    expected = len(random_shapes(SMALL)[official.DENOISING_UNET]) - 1
    text = refusal(folder)
    assert f"missing ({expected})" in text and f"… and {expected - 8} more" in text
    assert len(text) < 2000


def test_a_file_of_another_kind_is_named_without_hiding_the_others(folder):
    torch.save({"weight": torch.ones(2)}, folder / official.MOTION_MODULE)
    edit(folder, VAE, lambda state: {**state, "stranger": torch.ones(1)})
    text = refusal(folder)
    assert f"{official.MOTION_MODULE}\n    motion module: no position tables" in text and "stranger" in text


def test_a_projection_of_tensors_without_axes_is_named(folder):
    edit(folder, official.AUDIO_PROJECTION, lambda state: {name: torch.zeros(()) for name in state})
    assert f"{official.AUDIO_PROJECTION}\n    its tensors have shapes that no V-Express network has" in refusal(folder)


def test_parts_of_different_models_do_not_pass(folder, tmp_path):
    edit_json(folder, official.UNET_CONFIG, cross_attention_dim=44)
    text = refusal(folder)
    assert official.AUDIO_PROJECTION in text and "proj_out.weight is [40, 56], expected [44, 56]" in text
    assert "attn2.to_k.weight is [32, 40], expected [32, 44]" in text


def test_configurations_that_contradict_each_other_are_named(folder):
    edit_json(folder, official.AUDIO_PREPROCESSOR, sampling_rate=8000)
    text = refusal(folder)
    assert official.AUDIO_PREPROCESSOR in text and "16000 Hz" in text


@pytest.mark.parametrize("value", [None, "0.18215", 0, -1, True, float("inf"), float("nan")])
def test_a_scaling_that_is_no_positive_number_is_named(folder, value):
    edit_json(folder, official.VAE_CONFIG, scaling_factor=value)
    assert f"{official.VAE_CONFIG}\n    scaling_factor is {value!r}, not a positive number" in refusal(folder)


def test_an_audio_configuration_must_say_the_sizes_that_are_read_from_it(folder):
    config = json.loads((folder / official.AUDIO_CONFIG).read_text())
    for name in ("conv_kernel", "conv_stride"):
        (folder / official.AUDIO_CONFIG).write_text(json.dumps({key: config[key] for key in config if key != name}))
        assert f"{official.AUDIO_CONFIG}\n    it does not say {name}" in refusal(folder)
    (folder / official.AUDIO_CONFIG).write_text(json.dumps({**config, "conv_stride": [0] * 7}))
    assert "conv_kernel and conv_stride are not all positive" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (official.UNET_CONFIG, {"down_block_types": ["DownBlock3D"] * 3}),
        (official.UNET_CONFIG, {"block_out_channels": None}),
        (official.VAE_CONFIG, {"block_out_channels": "wide"}),
        (official.AUDIO_CONFIG, {"hidden_size": "wide"}),
    ],
)
def test_impossible_configurations_are_one_sentence_that_names_the_file(folder, name, values):
    edit_json(folder, name, **values)
    text = refusal(folder)
    assert str(folder / name) in text and "\n" not in text


@pytest.mark.parametrize("name", [official.VAE_CONFIG, official.DENOISING_UNET, AUDIO])
def test_an_unreadable_file_is_named(folder, name):
    (folder / name).write_bytes(b"nonsense")
    assert str(folder / name) in refusal(folder)
