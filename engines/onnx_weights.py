"""The weights of an ONNX graph as arrays, mapped from the files they lie in."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.onnx_files import external_location

if TYPE_CHECKING:
    import onnx


def initializer_arrays(bundle: Bundle, spec: GraphSpec, model: "onnx.ModelProto") -> dict[str, np.ndarray]:
    """{name: array} of all initializers of `model`, the structure of `spec`.

    External ones are read-only views of the mapped file: they cost memory only when they are used. Raises UserError
    when one reaches beyond the end of its file.
    """
    from onnx import numpy_helper

    maps: dict[Path, np.ndarray] = {}
    arrays = {}
    for tensor in model.graph.initializer:
        location = external_location(tensor)
        if location is None:
            arrays[tensor.name] = numpy_helper.to_array(tensor)
            continue
        path = bundle.path(spec.path).parent / location
        if path not in maps:
            maps[path] = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        arrays[tensor.name] = _view(tensor, maps[path], path)
    return arrays


def _view(tensor: "onnx.TensorProto", content: np.ndarray, path: Path) -> np.ndarray:
    from onnx import helper

    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset = int(entries.get("offset", 0))
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    length = math.prod(tensor.dims) * dtype.itemsize
    if offset < 0 or offset + length > content.size:
        raise UserError(f"{path} ends before the data of {tensor.name}: export the bundle again")
    return np.asarray(content[offset : offset + length]).view(dtype).reshape(tuple(tensor.dims))
