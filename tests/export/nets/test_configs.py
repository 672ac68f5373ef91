"""Sizes of the networks: read from a diffusers configuration and from shapes, or refused in a sentence."""

import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.export.nets.configs import (
    GuiderConfig,
    MotionConfig,
    NetworkConfigs,
    ProjectionConfig,
    UNetConfig,
    up_to_last_attention,
)


def test_sizes_of_the_tiny_model(configs):
    assert configs.unet.block_out_channels == (32, 32, 32, 64)
    assert configs.unet.heads == (8, 8, 8, 8)
    assert configs.unet.down_attention == (True, True, True, False)
    assert configs.unet.up_attention == (False, True, True, True)
    assert configs.unet.cross_attention_dim == 48
    assert configs.motion == MotionConfig(max_length=32, heads=8, attention_blocks=2)
    assert configs.guider == GuiderConfig(3, (16, 32, 96, 256), 32)
    assert configs.projection == ProjectionConfig(48, 4, 64, 12, 5, 64, 48, 4, 10)


def test_heads_may_be_given_per_level(unet_json):
    assert UNetConfig.from_json(unet_json | {"attention_head_dim": [1, 2, 4, 8]}).heads == (1, 2, 4, 8)


def test_round_trip_through_diffusers_options(unet_json):
    config = UNetConfig.from_json(unet_json)
    assert UNetConfig.from_json(config.to_diffusers()) == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_linear_projection": True}, "use_linear_projection"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"cross_attention_dim": [48, 48, 48, 48]}, "cross_attention_dim"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "AttnDownBlock2D"),
        ({"attention_head_dim": [8, 8]}, "heads"),
        ({"attention_head_dim": 7}, "7 heads"),
        ({"layers_per_block": [1, 2, 2, 2]}, "layers_per_block"),
        ({"norm_num_groups": 48}, "48 norm groups"),
    ],
)
def test_unsupported_unet_options_are_named(unet_json, change, named):
    with pytest.raises(UserError, match=named):
        UNetConfig.from_json(unet_json | change)


def test_a_missing_unet_option_is_named(unet_json):
    rest = {option: value for option, value in unet_json.items() if option != "block_out_channels"}
    with pytest.raises(UserError, match="block_out_channels is missing"):
        UNetConfig.from_json(rest)


@pytest.mark.parametrize("part", ["motion_module", "v_kps_guider", "audio_projection"])
def test_a_file_of_another_part_is_refused(unet_json, shapes, part):
    with pytest.raises(UserError, match="V-Express"):
        NetworkConfigs.from_parts(unet_json, shapes | {part: shapes["reference_net"]})


def test_parts_of_different_models_are_refused(unet_json, shapes):
    with pytest.raises(UserError, match="cross_attention_dim 64"):
        NetworkConfigs.from_parts(unet_json | {"cross_attention_dim": 64}, shapes)
    with pytest.raises(UserError, match="kps guider"):
        NetworkConfigs.from_parts(unet_json | {"block_out_channels": [64, 64, 64, 64]}, shapes)
    with pytest.raises(UserError, match="motion module"):
        NetworkConfigs.from_parts(
            unet_json
            | {"block_out_channels": [48, 48], "norm_num_groups": 16, "attention_head_dim": 8}
            | {key: unet_json[key][:2] for key in ("down_block_types",)}
            | {"up_block_types": unet_json["up_block_types"][2:]},
            shapes,
        )


def test_up_blocks_count_the_skip_in_their_input_channels(configs):
    stages = configs.unet.stages()
    assert [stage.kind for stage in stages] == ["down"] * 4 + ["mid"] + ["up"] * 4
    assert stages[5].resnets == ((128, 64), (128, 64), (96, 64))
    assert stages[8].resnets == ((64, 32), (64, 32), (64, 32))
    assert [stage.attentions for stage in stages] == [2, 2, 2, 0, 1, 0, 3, 3, 3]
    assert [stage.resample for stage in stages] == [True, True, True, False, False, True, True, True, False]


def test_a_network_is_cut_at_its_last_attention(unet_json):
    types = ["UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"]
    stages = up_to_last_attention(UNetConfig.from_json(unet_json | {"up_block_types": types}).stages())
    assert [stage.kind for stage in stages] == ["down"] * 4 + ["mid", "up", "up"]
    assert stages[-1].attentions == 3 and not stages[-1].resample
    types = ["UpBlock2D"] * 4
    stages = up_to_last_attention(UNetConfig.from_json(unet_json | {"up_block_types": types}).stages())
    assert stages[-1].kind == "mid" and len(stages[-1].resnets) == 1
