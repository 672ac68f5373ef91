"""Which tensors of a graph are what modules of its network return: told by the parameters that their nodes read.

The exporter keeps the names and layouts of parameters, so a convolution that reads `conv_in.weight` is the module
`conv_in`. Nothing of torch is needed to tell.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_LAYERS = ("Conv", "Gemm", "MatMul", "LayerNormalization", "GroupNormalization")  # the second input is the weight
_SAME_VALUES = ("Cast", "Identity")


@dataclass(frozen=True)
class ModuleOutput:
    """What a module returns, or the piece of this number, from 0, of so many equal ones on its last axis."""

    module: str
    piece: int = 0
    pieces: int = 1


@dataclass(frozen=True)
class _Parameter:
    """A module's "weight" or "bias", as a node reads it: of a linear layer perhaps a piece, and turned."""

    of: ModuleOutput
    kind: str
    turned: bool = False


def module_outputs(model: "onnx.ModelProto") -> dict[str, ModuleOutput]:
    """{tensor: the module's output that it is} for all convolutions, linear layers and norms that are told apart.

    A linear layer's is the sum with its bias. A module that the graph runs more than once is left out: which of its
    runs a tensor belongs to cannot be told.
    """
    return _Reading(model).outputs()


class _Reading:
    """One pass over the nodes of a graph."""

    def __init__(self, model: "onnx.ModelProto") -> None:
        self._nodes = model.graph.node
        self._parameters: dict[str, _Parameter] = {}
        for tensor in model.graph.initializer:
            module, _, kind = tensor.name.rpartition(".")
            if module and kind in ("weight", "bias"):
                self._parameters[tensor.name] = _Parameter(ModuleOutput(module), kind)
        self._unfinished: dict[str, ModuleOutput] = {}  # products that lack their bias
        self._found: dict[ModuleOutput, list[str]] = {}

    def outputs(self) -> dict[str, ModuleOutput]:
        for node in self._nodes:
            if node.op_type in _LAYERS:
                self._layer(node)
            elif node.op_type == "Add":
                self._sum(node)
            elif node.input and node.input[0] in self._parameters:
                self._rearrange(node, self._parameters[node.input[0]])
        return {tensors[0]: output for output, tensors in self._found.items() if len(tensors) == 1}

    def _layer(self, node: "onnx.NodeProto") -> None:
        weight = self._parameters.get(node.input[1])
        if weight is None or weight.kind != "weight" or not _applied_as_a_layer_does(node, weight):
            return
        bias = f"{weight.of.module}.bias"
        if bias in self._parameters and bias not in node.input:
            self._unfinished[node.output[0]] = weight.of
        else:
            self._found.setdefault(weight.of, []).append(node.output[0])

    def _sum(self, node: "onnx.NodeProto") -> None:
        for product, other in (node.input, reversed(node.input)):
            output = self._unfinished.get(product)
            if output is not None and self._parameters.get(other) == _Parameter(output, "bias"):
                self._found.setdefault(output, []).append(node.output[0])

    def _rearrange(self, node: "onnx.NodeProto", parameter: _Parameter) -> None:
        """Follow a parameter on its way to a product."""
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type in _SAME_VALUES:
            self._parameters[node.output[0]] = parameter
        elif node.op_type == "Transpose" and list(attributes["perm"].ints) == [1, 0]:
            self._parameters[node.output[0]] = replace(parameter, turned=not parameter.turned)
        elif node.op_type == "Split" and parameter.of.pieces == 1 and not parameter.turned and _in_equal_rows(node):
            for piece, name in enumerate(node.output):
                own = ModuleOutput(parameter.of.module, piece, len(node.output))
                self._parameters[name] = replace(parameter, of=own)


def _in_equal_rows(split: "onnx.NodeProto") -> bool:
    return not any(split.input[1:]) and all(a.i == 0 for a in split.attribute if a.name == "axis")


def _applied_as_a_layer_does(node: "onnx.NodeProto", weight: _Parameter) -> bool:
    """Whether the weight of a product is the transpose of the module's, as in `nn.Linear`; others have no choice."""
    if node.op_type == "Gemm":
        return not weight.turned and any(a.name == "transB" and a.i == 1 for a in node.attribute)
    return weight.turned == (node.op_type == "MatMul")
