"""Reading a bundle's ONNX graphs without their weights, and trusting none of the paths inside."""

from pathlib import Path
from typing import TYPE_CHECKING

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec, is_safe_path

if TYPE_CHECKING:
    import onnx


def load_structure(bundle: Bundle, spec: GraphSpec) -> "onnx.ModelProto":
    """The graph with its small initializers; external weights stay on the disk.

    Raises UserError when the file is no ONNX model, has no tensors of the names the manifest promises, or refers to
    data outside the files the manifest lists for this graph.
    """
    path = bundle.path(spec.path)
    model = read_without_weights(path)
    folder = spec.path.rpartition("/")[0]
    allowed = {file for file in spec.files if file.rpartition("/")[0] == folder}
    for tensor in model.graph.initializer:
        location = external_location(tensor)
        if location is not None and (not is_safe_path(location) or f"{folder}/{location}".lstrip("/") not in allowed):
            raise UserError(
                f"{path} keeps {tensor.name} in {location!r}, which the manifest does not list beside it: "
                "export the bundle again"
            )
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


def external_location(tensor: "onnx.TensorProto") -> str | None:
    """The file a tensor's data lies in, relative to its model; None when the data is in the model itself."""
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _check_names(path: object, kind: str, found: list[str], promised: list[str]) -> None:
    if set(found) != set(promised):
        difference = ", ".join(sorted(set(found) ^ set(promised)))
        raise UserError(f"{path} and its manifest disagree about the {kind} names ({difference}): export it again")
