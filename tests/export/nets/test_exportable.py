"""The denoiser exports to ONNX once for all sizes, with one attention operator per attention."""

from collections import Counter

import onnxruntime
import torch
from torch.export import Dim

from vexpress_trt.export.nets.configs import MotionConfig, UNetConfig
from vexpress_trt.export.nets.denoiser import Denoiser

UNET = UNetConfig(4, 4, (32, 32), 1, (2, 2), 12, 32, 1e-5, (True, False), (False, True))
PAIRS = 4  # one in the down block, one in the middle, two in the up block


def inputs(batch, frames, height, width):
    tokens = [height * width] + [((height + 1) // 2) * ((width + 1) // 2)] + [height * width] * 2
    pairs = [torch.randn(1, 2, count, 16) for count in tokens for _ in ("key", "value")]
    return (
        torch.randn(batch, frames, 4, height, width),
        torch.linspace(900, 100, batch),
        torch.randn(batch, frames, 5, 12),
        torch.randn(batch, frames, 32, height, width),
        pairs,
        torch.tensor([0.95]),
        torch.tensor([3.0]),
    )


def test_one_graph_serves_all_sizes(tmp_path):
    torch.manual_seed(0)
    denoiser = Denoiser(UNET, MotionConfig(), guided=True).eval().requires_grad_(False)
    batch, frames = Dim("B", min=1, max=8), Dim("F", min=1, max=32)
    height, width = Dim("h", min=3, max=64), Dim("w", min=3, max=64)
    frame_dims = {0: batch, 1: frames, 3: height, 4: width}
    shapes = (
        frame_dims, {0: batch}, {0: batch, 1: frames}, frame_dims, [{2: Dim.DYNAMIC}] * (2 * PAIRS), {}, {},
    )  # fmt: skip
    program = torch.onnx.export(
        denoiser, inputs(2, 3, 6, 8), dynamo=True, opset_version=23, dynamic_shapes=shapes, verbose=False
    )
    operators = Counter(node.op_type for node in program.model_proto.graph.node)
    motions = 2 + 1 + 4
    assert operators["Attention"] == 3 * PAIRS + 2 * motions
    assert "Softmax" not in operators and "InstanceNormalization" not in operators
    program.save(tmp_path / "denoiser.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "denoiser.onnx", providers=["CPUExecutionProvider"])
    for sizes in ((2, 3, 6, 8), (1, 1, 5, 7), (3, 4, 8, 3)):
        arguments = inputs(*sizes)
        flat = [*arguments[:4], *arguments[4], *arguments[5:]]
        names = [entry.name for entry in session.get_inputs()]
        (prediction,) = session.run(None, {name: t.numpy() for name, t in zip(names, flat, strict=True)})
        expected = denoiser(*arguments)
        torch.testing.assert_close(torch.from_numpy(prediction), expected, rtol=1e-4, atol=2e-5)
