"""An ONNX file as a network of TensorRT, or the node that stands in the way and what to do."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.onnx_files import check_places, read_without_weights
from vexpress_trt.engines.trt.bindings import check_bindings
from vexpress_trt.engines.trt.flavour import TensorRt

if TYPE_CHECKING:
    import onnx

_SAYS_NOTHING = ("", "false")  # what the parser says of an operator that it knows and does not support


def parsed(
    tensorrt: TensorRt, builder: Any, log: Any, spec: GraphSpec, path: Path, model: "onnx.ModelProto | None" = None
) -> Any:
    """The network of a graph in the ONNX file at `path`; weights are mapped, not read. With `model` it is the graph,
    and the file only tells where its weights lie.

    Raises UserError that names graph, node, operator and remedy where TensorRT cannot read it, for weights outside the
    bundle, and for inputs or outputs that are not those of `spec`.
    """
    trt = tensorrt.module
    model = read_without_weights(path) if model is None else model
    check_places(model, spec, path)
    if not tensorrt.has_attention:
        from vexpress_trt.engines.trt.older_parsers import for_older_parsers

        for_older_parsers(model, path)
    network = builder.create_network(_flags(tensorrt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model.SerializeToString(), str(path)):
        raise UserError(f"{tensorrt.backend} {tensorrt.version} cannot read {spec.name}, {path}: {_first(parser)}")
    check_bindings(trt, network, spec)
    return network


def _flags(tensorrt: TensorRt) -> int:
    flag = getattr(tensorrt.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None or tensorrt.is_rtx else 1 << int(flag)


def _first(parser: Any) -> str:
    """The first of the parser's errors, and what to do about it."""
    if not parser.num_errors:
        return "it gives no reason; export the bundle again"
    error = parser.get_error(0)
    said = " ".join(error.desc().split())
    if error.node() < 0:
        return f"{said}; export the bundle again"
    said = "it is not supported" if said in _SAYS_NOTHING else said
    more = f" (and {parser.num_errors - 1} more)" if parser.num_errors > 1 else ""
    return (
        f"operator {error.node_operator()} of node {error.node_name() or error.node()}: {said}{more}; install a newer "
        "version, or run the bundle with `--backend onnxruntime` or `torch`"
    )
