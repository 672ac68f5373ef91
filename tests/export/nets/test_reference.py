"""The reference network: its taps are the original's bank, and nothing without influence is computed."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel

from vexpress_trt.export.nets.configs import UNetConfig
from vexpress_trt.export.nets.reference import ReferenceNet
from vexpress_trt.export.nets.unet import transformer_names


@pytest.fixture
def net(configs, weights):
    return ReferenceNet.from_state_dict(configs.unet, weights["reference_net"])


def test_taps_are_the_bank_in_execution_order(net, configs, golden, golden_dir, assert_golden):
    arrays = golden("reference_net")
    taps = dict(zip(transformer_names(configs.unet), net(arrays["in_latents"]), strict=True))
    order = json.loads((golden_dir / "modules" / "bank_order.json").read_text())
    assert {entry["writer"] for entry in order} == set(taps)
    for entry in order:
        assert_golden(taps[entry["writer"]], arrays[f"bank_{entry['index']:02d}"])


def test_execution_order_is_down_mid_up(configs):
    places = [name.split(".attentions")[0] for name in transformer_names(configs.unet)]
    assert places == (
        ["down_blocks.0"] * 2 + ["down_blocks.1"] * 2 + ["down_blocks.2"] * 2 + ["mid_block"]
        + ["up_blocks.1"] * 3 + ["up_blocks.2"] * 3 + ["up_blocks.3"] * 3
    )  # fmt: skip


def test_every_submodule_matches_the_trace(net, golden, trace, record_outputs, assert_golden):
    outputs = {}
    record_outputs(net, outputs)
    net(golden("reference_net")["in_latents"])
    names = [entry["name"] for entry in trace("reference_net")]
    last = names.index("up_blocks.3.attentions.2")  # of which only the inside runs here
    checked = 0
    for entry in trace("reference_net")[:last]:
        if entry["name"] in outputs:
            output = outputs[entry["name"]]
            output = output[0] if isinstance(output, tuple) else output
            assert list(output.shape) == entry["shape"]
            assert_golden(output.flatten()[entry["flat_index"]], torch.tensor(entry["values"]))
            checked += 1
    assert checked == last - sum(name.count(".") < 2 and "block" in name for name in names[:last])


def test_every_parameter_acts(configs, weights):
    net = ReferenceNet.from_state_dict(configs.unet, weights["reference_net"]).requires_grad_(True)
    sum(tap.square().sum() for tap in net(torch.randn(1, 4, 16, 16))).backward()
    assert [name for name, parameter in net.named_parameters() if not parameter.grad.any()] == []


def test_keys_and_values_are_the_projected_taps(net, reference, configs, weights, golden, assert_golden):
    latents = golden("denoising_unet_nocfg_oddsize")["ref_latents"]
    outputs = reference(latents)
    names = transformer_names(configs.unet)
    assert len(outputs) == 2 * len(names)
    for index, (name, tap) in enumerate(zip(names, net(latents), strict=True)):
        for output, projection in zip(outputs[2 * index : 2 * index + 2], ("to_k", "to_v"), strict=True):
            expected = tap @ weights["denoising_unet"][f"{name}.attn1_5.{projection}.weight"].T
            assert output.shape == (1, 8, tap.shape[1], tap.shape[2] // 8)
            assert_golden(output.transpose(1, 2).flatten(2), expected)


@pytest.mark.parametrize(
    ("down", "up"),
    [("CD", "UC"), ("DC", "CU"), ("DD", "UU"), ("CDC", "CUC")],
    ids=lambda types: types.lower(),
)
def test_other_layouts_equal_the_stock_network(down, up):
    levels = len(down)
    config = UNetConfig.from_json(
        {
            "block_out_channels": [16, 32, 24][:levels],
            "layers_per_block": 1,
            "attention_head_dim": [2, 4, 3][:levels],
            "cross_attention_dim": 12,
            "norm_num_groups": 8,
            "down_block_types": [{"C": "CrossAttnDownBlock2D", "D": "DownBlock2D"}[kind] for kind in down],
            "up_block_types": [{"C": "CrossAttnUpBlock2D", "U": "UpBlock2D"}[kind] for kind in up],
        }
    )
    torch.manual_seed(0)
    stock = UNet2DConditionModel(**config.to_diffusers()).eval()
    expected = []
    for name, module in stock.named_modules():
        if name.endswith("transformer_blocks.0.norm2"):
            module.register_forward_hook(lambda _module, _args, output, name=name: expected.append((name, output)))
    latent = torch.randn(1, 4, 10, 14)
    with torch.no_grad():
        stock(latent, 0, torch.zeros(1, 1, 12))
    taps = ReferenceNet.from_state_dict(config, stock.state_dict())(latent)
    assert [name.removesuffix(".norm2") for name, _ in expected] == transformer_names(config)
    for tap, (_, output) in zip(taps, expected, strict=True):
        torch.testing.assert_close(tap, output, rtol=1e-4, atol=2e-5)
