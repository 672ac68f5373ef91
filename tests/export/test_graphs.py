"""The table of graphs: shapes as expressions of the sizes, keys and values in execution order."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from vexpress_trt.engines.dims import evaluate, is_dimension  # noqa: E402
from vexpress_trt.export.checkpoints import Checkpoints, load_checkpoints  # noqa: E402
from vexpress_trt.export.graph_shapes import audio_rows, tokens_of_level  # noqa: E402
from vexpress_trt.export.graphs import graphs, keys_and_values  # noqa: E402
from vexpress_trt.export.nets.configs import UNetConfig  # noqa: E402

WAV2VEC2 = {"conv_kernel": (10, 3, 3, 3, 3, 2, 2), "conv_stride": (5, 2, 2, 2, 2, 2, 2)}


@pytest.fixture(scope="module")
def checkpoints(other_checkpoints: Path) -> Checkpoints:
    return load_checkpoints(other_checkpoints, hash_files=False)


def test_every_dimension_is_one_the_manifest_accepts(checkpoints: Checkpoints) -> None:
    for graph in graphs(checkpoints):
        for tensor in (*graph.inputs, *graph.outputs):
            assert all(is_dimension(dimension) for dimension in tensor.shape), (graph.name, tensor)


def test_sizes_of_the_check_differ_from_the_traced_ones(checkpoints: Checkpoints) -> None:
    for graph in graphs(checkpoints):
        assert graph.traced.keys() == graph.checked.keys()
        assert all(graph.traced[name] != graph.checked[name] for name in graph.traced)


@pytest.mark.parametrize("samples", [400, 719, 720, 3217, 16000, 480001])
@pytest.mark.parametrize("strides", [WAV2VEC2["conv_stride"], (5, 2, 2)])
def test_audio_rows_are_those_of_the_strided_convolutions(samples: int, strides: tuple[int, ...]) -> None:
    config = {"conv_kernel": WAV2VEC2["conv_kernel"][: len(strides)], "conv_stride": strides}
    rows = samples
    for kernel, stride in zip(config["conv_kernel"], strides, strict=True):
        rows = (rows - kernel) // stride + 1
    assert evaluate(audio_rows(config), {"S": samples}) == rows


@pytest.mark.parametrize(("height", "width"), [(64, 64), (12, 20), (9, 13), (5, 7)])
def test_tokens_of_a_level_are_what_stride_two_convolutions_leave(height: int, width: int) -> None:
    pixels = torch.zeros(1, 1, height, width)
    for level in range(4):
        assert evaluate(tokens_of_level(level), {"h": height, "w": width}) == pixels[0, 0].numel()
        pixels = torch.nn.functional.conv2d(pixels, torch.zeros(1, 1, 3, 3), stride=2, padding=1)


def test_keys_and_values_follow_the_denoiser_down_through_the_middle_and_up() -> None:
    config = UNetConfig(
        4, 4, (32, 64, 96), 1, (2, 4, 8), 48, 32, 1e-5, down_attention=(True, True, False),
        up_attention=(False, True, True),
    )  # fmt: skip
    tensors = keys_and_values(config)
    assert [tensor.name for tensor in tensors][:3] == ["key_00", "value_00", "key_01"]
    shapes = [tensor.shape for tensor in tensors[::2]]
    half, quarter = tokens_of_level(1), tokens_of_level(2)
    top, middle, bottom = (1, 2, "h*w", 16), (1, 4, half, 16), (1, 8, quarter, 12)
    assert shapes == [top, middle, bottom, middle, middle, top, top]
    assert all(tensor.typed for tensor in tensors)


def test_keys_and_values_go_into_forward_as_one_sequence(checkpoints: Checkpoints) -> None:
    table = {graph.name: graph for graph in graphs(checkpoints)}
    graph = table["denoiser_guided"]
    names = [tensor.name for tensor in graph.inputs]
    pairs = [name for name in names if name.startswith(("key_", "value_"))]
    assert graph.arguments(names) == (
        "latents", "timestep", "tokens", "kps_feature", pairs, "reference_weight", "audio_weight"
    )  # fmt: skip
    assert table["kps_guider"].arguments(["rgb"]) == ("rgb",)


def test_only_tensors_between_graphs_have_the_graphs_own_type(checkpoints: Checkpoints) -> None:
    typed = {
        tensor.name.rstrip("0123456789")
        for graph in graphs(checkpoints)
        for tensor in (*graph.spec("fp16").inputs, *graph.spec("fp16").outputs)
        if tensor.dtype == "float16"
    }
    assert typed == {"tokens", "feature", "kps_feature", "key_", "value_"}


def test_the_denoisers_share_their_weight_file(checkpoints: Checkpoints) -> None:
    specs = {graph.name: graph.spec("bf16") for graph in graphs(checkpoints)}
    assert specs["denoiser_guided"].files == ("onnx/bf16/denoiser_guided.onnx", "onnx/bf16/denoiser.data")
    assert specs["denoiser_single"].files == ("onnx/bf16/denoiser_single.onnx", "onnx/bf16/denoiser.data")
    assert len({spec.files[1] for spec in specs.values()}) == 7
