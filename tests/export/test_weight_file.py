"""External weights: equal tensors once, large ones on pages, readable by any ONNX tool."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from vexpress_trt.export.weight_file import INLINE_BYTES, WeightFile, move_to_file, weight_file

GENERATOR = np.random.default_rng(0)


def model(**arrays: np.ndarray) -> ir.Model:
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value], tensors)
    return ir.serde.deserialize_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]))


def save(folder: Path, name: str, graph: ir.Model, weights: WeightFile) -> Path:
    move_to_file(graph, weights)
    ir.save(graph, folder / name)
    return folder / name


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_two_graphs_share_one_file_and_lose_nothing(tmp_path: Path) -> None:
    shared, own = GENERATOR.normal(size=(64, 32)).astype(np.float32), GENERATOR.normal(size=700)
    with weight_file(tmp_path / "both.data") as weights:
        one = save(tmp_path, "one.onnx", model(a=shared), weights)
        size = weights.size
        two = save(tmp_path, "two.onnx", model(b=shared, c=own), weights)
    np.testing.assert_array_equal(initializers(one)["a"], shared)
    np.testing.assert_array_equal(initializers(two)["b"], shared)
    np.testing.assert_array_equal(initializers(two)["c"], own)
    assert size == shared.nbytes
    assert (tmp_path / "both.data").stat().st_size < shared.nbytes + own.nbytes + 64


def test_equal_bytes_of_another_shape_keep_their_shape(tmp_path: Path) -> None:
    array = GENERATOR.normal(size=(32, 64)).astype(np.float32)
    with weight_file(tmp_path / "w.data") as weights:
        path = save(tmp_path, "m.onnx", model(flat=array.reshape(-1), wide=array), weights)
    assert initializers(path)["flat"].shape == (2048,)
    np.testing.assert_array_equal(initializers(path)["wide"], array)
    assert (tmp_path / "w.data").stat().st_size == array.nbytes


def test_small_tensors_stay_in_the_graph(tmp_path: Path) -> None:
    small, large = np.zeros(INLINE_BYTES, np.uint8), np.zeros(INLINE_BYTES + 1, np.uint8)
    with weight_file(tmp_path / "w.data") as weights:
        path = save(tmp_path, "m.onnx", model(small=small, large=large), weights)
    places = {t.name: t.data_location for t in onnx.load(path, load_external_data=False).graph.initializer}
    assert places == {"small": TensorProto.DEFAULT, "large": TensorProto.EXTERNAL}


def test_large_tensors_begin_on_a_page(tmp_path: Path) -> None:
    arrays = {name: GENERATOR.integers(0, 255, size, np.uint8) for name, size in (("a", 1500), ("b", 1 << 17))}
    with weight_file(tmp_path / "w.data") as weights:
        path = save(tmp_path, "m.onnx", model(**arrays), weights)
    entries = {t.name: {e.key: e.value for e in t.external_data} for t in
               onnx.load(path, load_external_data=False).graph.initializer}  # fmt: skip
    assert entries["a"]["offset"] == "0" and entries["b"]["offset"] == "4096"
    np.testing.assert_array_equal(initializers(path)["b"], arrays["b"])
