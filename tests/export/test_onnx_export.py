"""One module becomes one typed ONNX file that holds for all sizes and computes what the module does."""

import logging
from collections import Counter
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto

torch = pytest.importorskip("torch")
import onnxruntime  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from vexpress_trt.engines.manifest import PRECISION_DTYPE, GraphSpec, TensorSpec  # noqa: E402
from vexpress_trt.export.onnx_export import TORCH_DTYPES, export_onnx  # noqa: E402
from vexpress_trt.export.weight_file import weight_file  # noqa: E402

ELEMENT = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


class Block(nn.Module):
    """The kinds of layers the networks have: strided convolution, group norm, attention, layer norm, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.to_qkv = nn.Linear(16, 48)
        self.layer_norm = nn.LayerNorm(16)

    def forward(self, image: torch.Tensor, extra: list[torch.Tensor]) -> torch.Tensor:
        hidden = self.norm(self.conv(image.to(self.conv.weight.dtype)))
        tokens = hidden.flatten(2).transpose(1, 2)
        query, key, value = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.to_qkv(tokens).chunk(3, dim=-1))
        key, value = torch.cat([key, extra[0]], dim=2), torch.cat([value, extra[1]], dim=2)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.layer_norm(attended).transpose(1, 2).unflatten(2, hidden.shape[-2:]).float()


def spec(precision: str, **shapes: tuple[int | str, ...]) -> GraphSpec:
    dtype = PRECISION_DTYPE[precision]
    pair = ("N", 2, shapes.get("rows", ("((h + 1)//2)*w",))[0], 8)
    return GraphSpec(
        "block",
        precision,
        "block.onnx",
        (
            TensorSpec("image", "float32", ("N", 3, "h", "2*w")),
            TensorSpec("key", dtype, pair),
            TensorSpec("value", dtype, pair),
        ),
        (TensorSpec("hidden", "float32", shapes.get("out", ("N", 16, "(h + 1)//2", "w"))),),
        ("block.onnx", "block.data"),
    )


def arguments(count: int, height: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    rows = ((height + 1) // 2) * width
    pair = [torch.randn(count, 2, rows, 8).to(dtype) for _ in range(2)]
    return torch.randn(count, 3, height, 2 * width), pair


def export(folder: Path, precision: str = "fp32", **shapes: tuple[int | str, ...]) -> tuple[Block, onnx.ModelProto]:
    torch.manual_seed(0)
    dtype = TORCH_DTYPES[PRECISION_DTYPE[precision]]
    module = Block().eval().requires_grad_(False).to(dtype)
    with weight_file(folder / "block.data") as weights:
        example = arguments(3, 13, 5, dtype)
        export_onnx(module, spec(precision, **shapes), example, folder / "block.onnx", weights, producer="maker 1.2")
    return module, onnx.load(folder / "block.onnx")


def test_a_graph_traced_once_computes_the_module_at_every_size(tmp_path: Path) -> None:
    module, _ = export(tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "block.onnx", providers=["CPUExecutionProvider"])
    for sizes in ((3, 13, 5), (1, 4, 3), (2, 7, 6), (5, 2, 1)):
        image, pair = arguments(*sizes, torch.float32)
        (hidden,) = session.run(None, {"image": image.numpy(), "key": pair[0].numpy(), "value": pair[1].numpy()})
        torch.testing.assert_close(torch.from_numpy(hidden), module(image, pair), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_weights_have_the_precisions_type_and_the_names_of_the_state_dict(tmp_path: Path, precision: str) -> None:
    module, model = export(tmp_path, precision)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, parameter in module.state_dict().items():
        assert stored[name].data_type == ELEMENT[precision]
        assert tuple(stored[name].dims) == tuple(parameter.shape)
        same = torch.frombuffer(bytearray(onnx.numpy_helper.to_array(stored[name]).tobytes()), dtype=parameter.dtype)
        torch.testing.assert_close(same, parameter.flatten(), rtol=0, atol=0)
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]}
    assert kinds == {"image": 1, "key": ELEMENT[precision], "value": ELEMENT[precision], "hidden": 1}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_norms_and_attention_are_single_nodes_with_fp32_statistics(tmp_path: Path, precision: str) -> None:
    _, model = export(tmp_path, precision)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["Attention"] == kinds["GroupNormalization"] == kinds["LayerNormalization"] == 1
    assert "Softmax" not in kinds
    for node in model.graph.node:
        if node.op_type.endswith("Normalization"):
            stash = [attribute.i for attribute in node.attribute if attribute.name == "stash_type"]
            assert stash in ([], [TensorProto.FLOAT])  # FLOAT is the default
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [23]


def test_the_file_says_what_it_is_and_nothing_about_the_machine_that_made_it(tmp_path: Path) -> None:
    _, model = export(tmp_path, "fp16")
    assert (model.producer_name, model.producer_version, model.graph.name) == ("maker", "1.2", "block")
    assert {entry.key: entry.value for entry in model.metadata_props} == {"graph": "block", "precision": "fp16"}
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input]
    assert dims[0] == ["N", 3, "h", "2*w"] and dims[1][2] == "((h + 1)//2)*w"
    assert any(node.name.startswith("to_qkv/") for node in model.graph.node)
    content = (tmp_path / "block.onnx").read_bytes()
    assert b".py" not in content and b"pkg.torch" not in content


def test_a_specification_the_graph_does_not_fulfil_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="block: hidden was traced with shape"):
        export(tmp_path, out=("N", 16, "h", "w"))
    with pytest.raises(ValueError, match="block: hidden was traced with shape"):
        export(tmp_path, out=("N", 15, "(h + 1)//2", "w"))


def test_exporting_is_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export")}
    export(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)
    assert levels == {name: logging.getLogger(name).level for name in levels}
