"""The key layout of official checkpoints, at full size and tiny."""

import gzip
import json

import pytest

from vexpress_trt.export.nets.configs import NetworkConfigs
from vexpress_trt.export.nets.layout import expected_shapes, reference_net_unused_keys

PARTS = ("reference_net", "denoising_unet", "motion_module", "v_kps_guider", "audio_projection")


@pytest.fixture(scope="module")
def official_shapes(golden_dir):
    """{part: {key: shape}} of the published model."""
    shapes = json.loads(gzip.decompress((golden_dir / "state_dict_shapes.json.gz").read_bytes()))
    return {part: {key: tuple(shape) for key, shape in entries.items()} for part, entries in shapes.items()}


@pytest.fixture(scope="module")
def official_configs(official_shapes, unet_json):
    sizes = {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768}
    return NetworkConfigs.from_parts(unet_json | sizes, official_shapes)


def test_layout_of_the_published_model(official_configs, official_shapes):
    expected = expected_shapes(official_configs)
    assert set(expected) == set(PARTS)
    for part in PARTS:
        assert expected[part] == official_shapes[part]


def test_layout_of_the_tiny_model(configs, shapes):
    assert expected_shapes(configs) == shapes


def test_unused_keys_of_the_reference_net(configs):
    unused = reference_net_unused_keys(configs.unet)
    zero_text = {key for key in unused if ".attn2." in key}
    last = "up_blocks.3.attentions.2"
    block = f"{last}.transformer_blocks.0"
    assert {key.split(".attn2.")[1] for key in zero_text} == {
        "to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight", "to_out.0.bias",
    }  # fmt: skip
    assert [key for key in zero_text if key.endswith("bias")] == [f"{block}.attn2.to_out.0.bias"]
    assert unused - zero_text == {
        "conv_out.weight", "conv_out.bias", f"{last}.proj_out.weight", f"{last}.proj_out.bias",
        f"{block}.norm3.weight", f"{block}.norm3.bias", f"{block}.ff.net.0.proj.weight",
        f"{block}.ff.net.0.proj.bias", f"{block}.ff.net.2.weight", f"{block}.ff.net.2.bias",
    }  # fmt: skip
