"""Operations are counted from the graph: by hand on small ones, by torch's own counter on whole networks."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from vexpress_trt.bench.flops import FlopCount, count_graph, count_model
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.dims import evaluate

FLOAT = TensorProto.FLOAT


def _model(
    node: onnx.NodeProto, inputs: dict[str, list], output: list | None, *, before: tuple = ()
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [*before, node],
        "g",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(node.output[0], FLOAT, output)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "settings", "expected"),
    [
        # 2 * outputs * (input channels * kernel)
        ("Conv", {"x": [2, 3, 8, 6], "w": [5, 3, 3, 3]}, [2, 5, 8, 6], {"pads": [1] * 4}, 2 * 2 * 5 * 48 * 27),
        ("Conv", {"x": [1, 4, 8, 8], "w": [6, 4, 3, 3]}, [1, 6, 4, 4], {"pads": [1] * 4, "strides": [2, 2]},
         2 * 6 * 16 * 36),
        # each of two groups sees half of the channels
        ("Conv", {"x": [1, 4, 5], "w": [6, 2, 3]}, [1, 6, 3], {"group": 2}, 2 * 6 * 3 * 6),
        ("ConvTranspose", {"x": [1, 4, 5], "w": [4, 6, 2]}, [1, 6, 10], {"strides": [2]}, 2 * 4 * 5 * 12),
        ("MatMul", {"x": [7, 4, 5], "w": [5, 6]}, [7, 4, 6], {}, 2 * 7 * 4 * 6 * 5),
        ("Gemm", {"x": [4, 5], "w": [6, 5]}, [4, 6], {"transB": 1}, 2 * 4 * 6 * 5),
        ("Gemm", {"x": [5, 4], "w": [5, 6]}, [4, 6], {"transA": 1}, 2 * 4 * 6 * 5),
        # queries with keys, and scores with values
        ("Attention", {"q": [2, 3, 10, 4], "k": [2, 3, 7, 4], "v": [2, 3, 7, 6]}, [2, 3, 10, 6], {},
         2 * 2 * 3 * 10 * 7 * (4 + 6)),
        ("Attention", {"q": [2, 10, 12], "k": [2, 7, 12], "v": [2, 7, 12]}, [2, 10, 12],
         {"q_num_heads": 3, "kv_num_heads": 3}, 2 * 2 * 3 * 10 * 7 * (4 + 4)),
        # two heads of queries share one of keys and values
        ("Attention", {"q": [1, 10, 8], "k": [1, 7, 4], "v": [1, 7, 4]}, [1, 10, 8],
         {"q_num_heads": 2, "kv_num_heads": 1}, 2 * 2 * 10 * 7 * (4 + 4)),
    ],
)  # fmt: skip
def test_two_operations_for_each_multiply_add(
    kind: str, inputs: dict, output: list, settings: dict, expected: int
) -> None:
    model = _model(helper.make_node(kind, list(inputs), ["y"], **settings), inputs, output)
    assert count_model(model).total == expected


def test_symbols_take_the_given_sizes_and_inner_shapes_are_inferred() -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["inner"])
    model = _model(helper.make_node("Relu", ["inner"], ["y"]), {"x": ["N", 5], "w": [5, 6]}, None, before=(product,))
    assert count_model(model, {"N": 7}) == FlopCount(linear=2 * 7 * 5 * 6)


def test_an_unknown_shape_is_an_error_and_not_a_zero() -> None:
    model = _model(helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": ["N", 5], "w": [5, 6]}, ["N", 6])
    with pytest.raises(ValueError, match="the shape of y, at the MatMul node y, is not known"):
        count_model(model)


def test_a_bundles_denoisers_have_the_operations_that_torch_counts(other_bundle: Path, other_checkpoints: Path) -> None:
    networks = _networks(other_checkpoints)
    bundle, sizes = Bundle.open(other_bundle), {"B": 2, "F": 8, "h": 9, "w": 13}
    for guided, name in ((True, "denoiser_guided"), (False, "denoiser_single")):
        plain = _plain_flop(networks, sizes, guided=guided)
        exact = count_graph(bundle, bundle.graph(name, "fp32"), sizes)
        assert plain - _savings(networks.unet, sizes, guided=guided) == exact.total


def test_the_baselines_denoiser_has_the_originals_operations() -> None:
    """Golden README, section 5: 61.32 TFLOP guided, 30.66 for one half, at 24 frames of 64x64 latents."""
    pytest.importorskip("torch")
    from vexpress_trt.export.random_model import RANDOM_MODELS

    networks, sizes = RANDOM_MODELS["full"].networks(), {"B": 1, "F": 24, "h": 64, "w": 64}
    assert _plain_flop(networks, sizes, guided=True) / 1e12 == pytest.approx(61.32, abs=0.005)
    assert _plain_flop(networks, sizes, guided=False) / 1e12 == pytest.approx(30.66, abs=0.005)


def _networks(checkpoints: Path):
    from vexpress_trt.export.checkpoints import load_checkpoints

    return load_checkpoints(checkpoints, hash_files=False).networks


def _plain_flop(networks, sizes: dict[str, int], *, guided: bool) -> int:
    """What torch counts in a call of the denoiser without savings; on the meta device nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vexpress_trt.export.graph_shapes import tap_shapes
    from vexpress_trt.export.nets.plain import PlainDenoiser

    unet = networks.unet
    windows = (sizes["B"], sizes["F"])
    with torch.device("meta"):
        module = PlainDenoiser(unet, networks.motion, guided=guided)
        arguments = (
            torch.empty(*windows, 4, sizes["h"], sizes["w"]),
            torch.empty(sizes["B"]),
            torch.empty(*windows, 5, unet.cross_attention_dim),
            torch.empty(*windows, unet.block_out_channels[0], sizes["h"], sizes["w"]),
            [torch.empty([evaluate(size, sizes) for size in shape]) for shape in tap_shapes(unet)],
            torch.empty(1),
            torch.empty(1),
        )
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(*arguments)
    return counter.get_total_flops()


def _savings(unet, sizes: dict[str, int], *, guided: bool) -> int:
    """What `denoiser.py` leaves out, counted by hand: keys and values of the reference for every frame; both cross
    attentions of the unconditional half; the input convolution of one half is shared in the plain form as well."""
    from vexpress_trt.export.graph_shapes import tap_shapes

    frames, saved = sizes["B"] * sizes["F"], 0
    for shape in tap_shapes(unet):
        tokens, channels = evaluate(shape[1], sizes), shape[2]
        keys_and_values = 2 * 2 * tokens * channels**2
        saved += frames * keys_and_values
        if guided:
            products = 2 * 2 * tokens * tokens * channels + 2 * 2 * tokens * 5 * channels
            query_and_output = 2 * 2 * 2 * tokens * channels**2
            audio_keys_and_values = 2 * 2 * 5 * unet.cross_attention_dim * channels
            saved += frames * (keys_and_values + products + query_and_output + audio_keys_and_values)
    return saved
