"""No attention of the full-size model materialises its scores: TensorRT-RTX has a fused kernel for each."""

import math

import pytest
from onnx import TensorProto, helper

from vexpress_trt.engines.trt.builder import make_attention_decomposable
from vexpress_trt.engines.trt.flavour import TensorRt, compute_capability
from vexpress_trt.engines.trt.older_parsers import rewrite

# Queries and keys, [batch, heads, tokens, channels of a head], at 512x512 with windows of 24 guided frames.
ATTENTIONS = {
    "spatial, level 0": ((48, 8, 4096, 40), (48, 8, 4096, 40)),
    "spatial, level 1": ((48, 8, 1024, 80), (48, 8, 1024, 80)),
    "spatial, level 2": ((48, 8, 256, 160), (48, 8, 256, 160)),
    "spatial, middle": ((48, 8, 64, 160), (48, 8, 64, 160)),
    "to the reference": ((1, 8, 24 * 4096, 40), (1, 8, 4096, 40)),
    "to the audio": ((24, 8, 4096, 40), (24, 8, 5, 40)),
    "over frames, level 0": ((2 * 4096, 8, 24, 40), (2 * 4096, 8, 24, 40)),
    "over frames, level 2": ((2 * 256, 8, 24, 160), (2 * 256, 8, 24, 160)),
    "in the audio encoder": ((1, 12, 399, 64), (1, 12, 399, 64)),
}
AUTOENCODER = ((1, 1, 4096, 512), (1, 1, 4096, 512))


def builds(rtx: TensorRt, sizes: tuple, element: int, *, decomposable: bool = False, as_products: bool = False) -> bool:
    """Whether one attention of these sizes builds for two GPUs; if not `decomposable`, with a fused kernel only.

    `as_products`: as for TensorRT 10.12, with no more working memory than queries, keys, values and the result take.
    """
    trt, (query, key) = rtx.module, sizes
    inputs = {"query": query, "key": key, "value": key}
    graph = helper.make_graph(
        [helper.make_node("Attention", list(inputs), ["out"])],
        "attention",
        [helper.make_tensor_value_info(name, element, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("out", element, query)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    if as_products:
        rewrite(model)
        assert [node.op_type for node in model.graph.node].count("Softmax") == 1
    log = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    assert trt.OnnxParser(network, log).parse(model.SerializeToString())
    if decomposable:
        assert make_attention_decomposable(trt, network) == 1
    config = builder.create_builder_config()
    if as_products:
        operands = 2 * (math.prod(query) + math.prod(key)) * (4 if element == TensorProto.FLOAT else 2)
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, operands + (1 << 20))
    config.num_compute_capabilities = 2
    for index, target in enumerate(("sm89", "sm120")):
        config.set_compute_capability(compute_capability(trt, target), index)
    return builder.build_serialized_network(network, config) is not None


@pytest.mark.parametrize("element", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("sizes", ATTENTIONS.values(), ids=ATTENTIONS.keys())
def test_an_attention_of_the_full_size_model_is_fused(rtx: TensorRt, sizes: tuple, element: int) -> None:
    assert builds(rtx, sizes, element)


@pytest.mark.parametrize("element", [TensorProto.FLOAT16, TensorProto.BFLOAT16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("sizes", ATTENTIONS.values(), ids=ATTENTIONS.keys())
def test_as_products_it_is_fused_too(rtx: TensorRt, sizes: tuple, element: int) -> None:
    """By TensorRT-RTX 1.7; the scores of level 0 alone would be 25 times the memory that is allowed."""
    assert builds(rtx, sizes, element, as_products=True)


def test_products_that_have_no_kernel_need_memory_for_their_scores(rtx: TensorRt) -> None:
    assert not builds(rtx, AUTOENCODER, TensorProto.FLOAT16, as_products=True)
    assert not builds(rtx, ATTENTIONS["spatial, level 0"], TensorProto.FLOAT, as_products=True)


def test_what_has_no_kernel_is_taken_apart(rtx: TensorRt) -> None:
    """The autoencoder's one wide head, whose scores for one image are small; and all of FP32."""
    for sizes, element in (
        (AUTOENCODER, TensorProto.FLOAT16),
        (ATTENTIONS["spatial, middle"], TensorProto.FLOAT),
    ):
        assert not builds(rtx, sizes, element)
        assert builds(rtx, sizes, element, decomposable=True)
