"""One torch module to one typed ONNX file, with symbolic dimensions and weights in a file beside it."""

import inspect
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
import torch
import torch.fx.experimental._config
from torch import Tensor, nn

from vexpress_trt.engines.dims import DimensionError, evaluate, symbols
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.export.graph_passes import tidy
from vexpress_trt.export.weight_file import WeightFile, move_to_file

# The first opset with `Attention` and with `GroupNormalization` whose statistics are FP32 whatever the type.
OPSET = 23

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
}

# {symbol: (smallest, largest size)} while tracing; None: no bound. They are not recorded in the graph.
Ranges = Mapping[str, tuple[int | None, int | None]]

Nested = Sequence[Any]


def export_onnx(
    module: nn.Module,
    spec: GraphSpec,
    arguments: Nested,
    path: Path,
    weights: WeightFile,
    *,
    producer: str,
    ranges: Ranges = MappingProxyType({}),
) -> None:
    """Write `module` as the ONNX graph that `spec` describes.

    `arguments` are example arguments of `module.forward`, tensors or sequences of tensors; flattened they correspond to
    `spec.inputs`. Example sizes must differ from 1 where a dimension is symbolic. The file's external data goes to
    `weights`, which lies in the same folder as `path`. `ranges` limits symbols for which the module would otherwise be
    traced differently at some sizes; `producer` is a name and a version.

    Raises ValueError when the traced graph has other shapes or dtypes than `spec` says, and torch's export errors
    when the module does not trace with these symbolic dimensions.
    """
    with _quiet():
        program = _trace(module, spec.inputs, arguments, ranges)
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            optimize=False,
            verbose=False,
        )
        names = _symbol_names(program, spec.inputs)
        model = exported.model
        del program, exported
        tidy(model, symbols=names)
    _declare(model, spec)
    model.producer_name, _, model.producer_version = producer.partition(" ")
    model.graph.name = spec.name
    model.metadata_props.update(graph=spec.name, precision=spec.precision)
    move_to_file(model, weights)
    ir.save(model, path)


def _trace(
    module: nn.Module, inputs: Sequence[TensorSpec], arguments: Nested, ranges: Ranges
) -> torch.export.ExportedProgram:
    table: dict[str, Any] = {}
    shapes = iter([{axis: _dimension(d, table, ranges) for axis, d in enumerate(tensor.shape)} for tensor in inputs])
    nested = _nest(arguments, shapes)
    names = inspect.signature(module.forward).bind(*nested).arguments
    # "Oblivious": a batch of one must not get a graph of its own.
    with torch.fx.experimental._config.patch(backed_size_oblivious=True), torch.no_grad():
        # Deferred: that the audio encoder's heads divide a reshape is checked when it runs, not proven for all sizes.
        return torch.export.export(
            module,
            tuple(arguments),
            dynamic_shapes=names,
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def _dimension(dimension: int | str, table: dict[str, Any], ranges: Ranges) -> Any:
    """torch's form of a declared dimension; `8*h` is derived from `h`, other expressions are free dimensions."""
    if isinstance(dimension, int):
        return torch.export.Dim.STATIC
    if dimension not in table:
        multiple = re.fullmatch(r"(\d+)\*([A-Za-z_]\w*)", dimension)
        if multiple:
            table[dimension] = int(multiple[1]) * _dimension(multiple[2], table, ranges)
        else:
            name = dimension if dimension.isidentifier() else f"free_{len(table)}"
            smallest, largest = ranges.get(name, (None, None))
            table[dimension] = torch.export.Dim(name, min=smallest, max=largest)
    return table[dimension]


def _nest(arguments: Any, flat: Iterator[Any]) -> Any:
    """The items of `flat` in the structure of `arguments`."""
    if isinstance(arguments, Tensor):
        return next(flat)
    return type(arguments)(_nest(argument, flat) for argument in arguments)


def _symbol_names(program: torch.export.ExportedProgram, inputs: Sequence[TensorSpec]) -> dict[str, str]:
    """{torch's symbol: ours}, read off the traced inputs."""
    traced = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    names: dict[str, str] = {}
    for placeholder, tensor in zip(program.graph_signature.user_inputs, inputs, strict=True):
        for size, declared in zip(traced[placeholder].shape, tensor.shape, strict=True):
            if isinstance(size, torch.SymInt):
                (symbol,) = size.node.expr.free_symbols
                known = symbols(declared)
                names[str(symbol)] = next(iter(known)) if len(known) == 1 else f"({declared})"
    return names


def _declare(model: ir.Model, spec: GraphSpec) -> None:
    """Check the traced inputs and outputs against the specification, then give them its dimension names."""
    for values, tensors in ((model.graph.inputs, spec.inputs), (model.graph.outputs, spec.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            where = f"{spec.name}: {tensor.name}"
            if value.name != tensor.name or value.dtype != ir.DataType.from_numpy(_numpy_dtype(tensor.dtype)):
                raise ValueError(f"{where} was traced as {value.name} of {value.dtype}, expected {tensor.dtype}")
            if len(value.shape) != len(tensor.shape) or not all(map(_agree, value.shape, tensor.shape)):
                raise ValueError(f"{where} was traced with shape {value.shape}, expected {list(tensor.shape)}")
            value.shape = ir.Shape(tensor.shape)


def _agree(traced: int | ir.SymbolicDim, declared: int | str) -> bool:
    """Whether two dimensions are the same number or, for three choices of their symbols, have the same value."""
    if isinstance(traced, int) or isinstance(declared, int):
        return traced == declared
    try:
        names = sorted(symbols(traced.value) | symbols(declared))
    except DimensionError:
        return False
    choices = [{name: start + 12 * index for index, name in enumerate(names)} for start in (400, 1013, 2049)]
    return all(evaluate(traced.value, sizes) == evaluate(declared, sizes) for sizes in choices)


def _numpy_dtype(name: str) -> Any:
    import ml_dtypes
    import numpy as np

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress, its advice to developers and its own deprecation warnings off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    output = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(output), redirect_stderr(output):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
