"""A model may keep data in the files that the manifest lists beside it, and nowhere else."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.onnx_files import check_places

SPEC = GraphSpec("g", "fp32", "onnx/g.onnx", (), (), ("onnx/g.onnx", "onnx/g.data", "parity/g.npz"))
PATH = Path("x.bundle/onnx/g.onnx")


def kept_in(*places: str) -> TensorProto:
    """A tensor whose data lies in these files; several are what no exporter writes."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(1,), data_location=TensorProto.EXTERNAL)
    for place in places:
        tensor.external_data.add(key="location", value=place)
    return tensor


def model_of(*nodes: onnx.NodeProto, weights: tuple[TensorProto, ...] = ()) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph(nodes, "g", [], [], weights))


def as_weight(tensor: TensorProto) -> onnx.ModelProto:
    return model_of(weights=(tensor,))


def as_constant(tensor: TensorProto) -> onnx.ModelProto:
    return model_of(helper.make_node("Constant", [], ["w"], value=tensor))


def as_constant_of_a_branch(tensor: TensorProto) -> onnx.ModelProto:
    branch = helper.make_graph([helper.make_node("Constant", [], ["w"], value=tensor)], "then", [], [])
    return model_of(helper.make_node("If", ["c"], ["y"], then_branch=branch))


def as_weight_of_a_branch(tensor: TensorProto) -> onnx.ModelProto:
    branch = helper.make_graph([], "then", [], [], [tensor])
    return model_of(helper.make_node("If", ["c"], ["y"], then_branch=branch))


def as_sparse_weight(tensor: TensorProto) -> onnx.ModelProto:
    model = model_of()
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    return model


def as_constant_of_a_function(tensor: TensorProto) -> onnx.ModelProto:
    model = model_of()
    model.functions.add(name="f").node.append(helper.make_node("Constant", [], ["w"], value=tensor))
    return model


WAYS = [
    as_weight, as_constant, as_constant_of_a_branch, as_weight_of_a_branch, as_sparse_weight, as_constant_of_a_function
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_data_beside_the_model_is_fine(way) -> None:
    check_places(way(kept_in("g.data")), SPEC, PATH)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "place", ["../../secret", "/etc/passwd", "other.data", "./g.data", "../onnx/g.data", "../parity/g.npz", ""]
)
def test_data_elsewhere_is_refused_wherever_in_the_model_it_is_told(way, place: str) -> None:
    said = rf"g.onnx keeps w in {place!r}, which the manifest does not list beside it: export the bundle again"
    with pytest.raises(UserError, match=said):
        check_places(way(kept_in(place)), SPEC, PATH)


@pytest.mark.parametrize("places", [(), ("g.data", "/etc/passwd"), ("g.data", "g.data")])
def test_none_or_several_files_are_refused(places: tuple[str, ...]) -> None:
    """Readers differ in which of several they take."""
    with pytest.raises(UserError, match="which the manifest does not list beside it"):
        check_places(as_weight(kept_in(*places)), SPEC, PATH)
