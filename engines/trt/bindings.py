"""The inputs and outputs of a network under construction: held to the manifest, pinned to a profile, read back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.engines.trt.profile import Profile

RANGE = -1  # a dimension that an engine takes in several sizes


@dataclass(frozen=True)
class Binding:
    """One input or output of an engine; `shape` has -1 where the profile is a range."""

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]


def check_bindings(trt: Any, network: Any, spec: GraphSpec) -> None:
    """Hold the names, types and fixed sizes of a parsed network to the manifest. Raises UserError that names one."""
    _compare(read_bindings(trt, network), _declared(spec, lambda d: d if isinstance(d, int) else RANGE), spec)


def pin_shapes(trt: Any, network: Any, spec: GraphSpec, profile: Profile) -> tuple[Binding, ...]:
    """Give the inputs their sizes where the profile has one, and return all bindings as the builder infers them.

    Raises UserError when an output comes out with another size than the manifest's expression has.
    """
    wanted = _declared(spec, lambda dimension: profile.size(dimension) or RANGE)
    for index, binding in enumerate(wanted[: len(spec.inputs)]):
        tensor = network.get_input(index)
        tensor.shape = binding.shape
    found = read_bindings(trt, network)
    _compare(found, wanted, spec)
    return found


def check_loaded(trt: Any, engine: Any, spec: GraphSpec, plan: object, remedy: str) -> None:
    """Hold the names and types of a deserialised engine to the manifest.

    Raises UserError that names the plan and the remedy.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    found = {
        name: (engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT, _type_name(trt, engine.get_tensor_dtype(name)))
        for name in names
    }
    declared = {tensor.name: (True, tensor.dtype) for tensor in spec.inputs}
    declared |= {tensor.name: (False, tensor.dtype) for tensor in spec.outputs}
    different = sorted(name for name in found.keys() | declared.keys() if found.get(name) != declared.get(name))
    if different:
        raise UserError(f"{plan} and the manifest disagree about {', '.join(different)}: {remedy}")


def read_bindings(trt: Any, network: Any) -> tuple[Binding, ...]:
    """The inputs and then the outputs of a network, as it has them now."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return tuple(
        Binding(tensor.name, tensor.is_network_input, _type_name(trt, tensor.dtype), tuple(tensor.shape))
        for tensor in (*inputs, *outputs)
    )


def _type_name(trt: Any, dtype: Any) -> str:
    """The manifest's name of a type."""
    types = {
        trt.DataType.FLOAT: "float32",
        trt.DataType.HALF: "float16",
        trt.DataType.BF16: "bfloat16",
        trt.DataType.INT64: "int64",
    }
    return types.get(dtype, str(dtype))


def _declared(spec: GraphSpec, size: Any) -> tuple[Binding, ...]:
    def binding(tensor: TensorSpec, is_input: bool) -> Binding:
        return Binding(tensor.name, is_input, tensor.dtype, tuple(size(dimension) for dimension in tensor.shape))

    return (*(binding(t, True) for t in spec.inputs), *(binding(t, False) for t in spec.outputs))


def _compare(found: Sequence[Binding], wanted: Sequence[Binding], spec: GraphSpec) -> None:
    for is_input, side in ((True, "inputs"), (False, "outputs")):
        ours = [binding.name for binding in found if binding.is_input == is_input]
        theirs = [binding.name for binding in wanted if binding.is_input == is_input]
        if ours != theirs:
            raise UserError(
                f"{spec.path}: its {side} are {', '.join(ours)}, the manifest says {', '.join(theirs)}: export the "
                "bundle again"
            )
    for one, other in zip(found, wanted, strict=True):
        if one != other:
            raise UserError(
                f"{spec.path}: {one.name} is {one.dtype} {list(one.shape)}, the manifest says {other.dtype} "
                f"{list(other.shape)}: export the bundle again"
            )
