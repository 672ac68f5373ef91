"""Reading a bundle's ONNX graphs without their weights, and trusting none of the paths inside."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec, is_safe_path

if TYPE_CHECKING:
    import onnx

# What tensors can be in: they are weights of a graph or values of its nodes' attributes.
_HOLDERS = frozenset(
    "GraphProto NodeProto AttributeProto TensorProto SparseTensorProto FunctionProto TrainingInfoProto".split()
)


def load_structure(bundle: Bundle, spec: GraphSpec) -> "onnx.ModelProto":
    """The graph with its small initializers; external weights stay on the disk.

    Raises UserError when the file is no ONNX model, has no tensors of the names the manifest promises, or refers to
    data outside the files the manifest lists for this graph.
    """
    path = bundle.path(spec.path)
    model = read_without_weights(path)
    check_places(model, spec, path)
    _check_names(path, "input", [value.name for value in model.graph.input], [item.name for item in spec.inputs])
    _check_names(path, "output", [value.name for value in model.graph.output], [item.name for item in spec.outputs])
    return model


def read_without_weights(path: Path) -> "onnx.ModelProto":
    """The ONNX file at `path`; external weights stay on the disk, where they lie is not looked at.

    Raises UserError when it is no ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as problem:
        raise UserError(f"{path} is not a readable ONNX model ({problem}): export the bundle again") from None


def check_places(model: "onnx.ModelProto", spec: GraphSpec, path: Path) -> None:
    """Refuse data outside the files that the manifest lists for the graph at `path`, wherever in the model it is told.

    Who reads the model follows such paths. Raises UserError that names the tensor.
    """
    import onnx

    folder = spec.path.rpartition("/")[0]
    allowed = {file for file in spec.files if file.rpartition("/")[0] == folder}
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        places = [entry.value for entry in tensor.external_data if entry.key == "location"]  # which of several counts
        if len(places) != 1 or not is_safe_path(places[0]) or f"{folder}/{places[0]}".lstrip("/") not in allowed:
            raise UserError(
                f"{path} keeps {tensor.name or 'a tensor'} in {', '.join(map(repr, places)) or 'no file'}, which the "
                "manifest does not list beside it: export the bundle again"
            )


def external_location(tensor: "onnx.TensorProto") -> str | None:
    """The file a tensor's data lies in, relative to its model; None when the data is in the model itself."""
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _tensors(message: Any) -> "Iterator[onnx.TensorProto]":
    """All tensors of a model, or of a part of it."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.name in _HOLDERS:
            for part in [value] if hasattr(value, "ListFields") else value:
                yield from _tensors(part)


def _check_names(path: object, kind: str, found: list[str], promised: list[str]) -> None:
    if set(found) != set(promised):
        difference = ", ".join(sorted(set(found) ^ set(promised)))
        raise UserError(f"{path} and its manifest disagree about the {kind} names ({difference}): export it again")
