"""Torch module against engine: the modules' outputs stored as test vectors, and every exported graph held to them."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import PRECISION_DTYPE, GraphSpec
from vexpress_trt.engines.precision import Precision
from vexpress_trt.engines.selection import engine_class, package_version
from vexpress_trt.engines.verify import ParityResult, compare, read_vectors, vector_inputs, verify_engine, write_vectors
from vexpress_trt.export.checkpoints import Checkpoints
from vexpress_trt.export.graphs import Graph
from vexpress_trt.export.onnx_export import TORCH_DTYPES

# What checks a precision on the CPU: onnxruntime is the numeric reference, but cannot run BF16 convolutions.
BACKENDS = {"fp32": "onnxruntime", "fp16": "onnxruntime", "bf16": "openvino"}


def module_of(graph: Graph, checkpoints: Checkpoints, precision: Precision) -> nn.Module:
    """The graph's torch module in the dtype of `precision`; weights of that dtype are not copied."""
    return graph.build(checkpoints).to(TORCH_DTYPES[PRECISION_DTYPE[precision]])


def example_arguments(graph: Graph, precision: Precision, sizes: Mapping[str, int]) -> tuple[Any, ...]:
    """The graph's test inputs of these sizes as arguments of its module's `forward`."""
    arrays = vector_inputs(graph.spec(precision), sizes)
    return graph.arguments(_tensor(array) for array in arrays.values())


def store_outputs(graph: Graph, module: nn.Module, path: Path) -> None:
    """Write the outputs of the FP32 module on the graph's test inputs: what every engine is compared with."""
    write_vectors(path, graph.checked, _outputs(graph, module, "fp32"))


def module_snr_db(graph: Graph, module: nn.Module, precision: Precision, path: Path) -> float:
    """How close torch itself gets to the stored FP32 outputs in `precision`, in dB: what the weights' and activations'
    rounding costs, with no exporter involved. Raises UserError where an output is not finite."""
    _, expected = read_vectors(path)
    for output, array in expected.items():
        if not np.isfinite(array).all():
            raise UserError(
                f"{output} of {graph.name} is not finite even in fp32: its weights are damaged, get them again with "
                "`vexpress fetch`"
            )
    output, snr, _ = compare(expected, _outputs(graph, module, precision))
    if not np.isfinite(snr):
        raise UserError(
            f"{graph.name} in {precision} overflows: {output} of the torch module is not finite; leave out this "
            "precision or use bf16"
        )
    return snr


def check_graph(bundle: Bundle, spec: GraphSpec) -> ParityResult:
    """Run an exported graph on the backend for its precision. Raises UserError when it differs from the module."""
    backend = BACKENDS[spec.precision]
    with _without_advice(), engine_class(backend)(bundle, spec, backend=backend) as engine:
        result = verify_engine(bundle, engine)
    if not result.passed:
        raise UserError(
            f"{spec.name} in {spec.precision} differs from its torch module: {result.output} has {result.snr_db:.1f} "
            f"dB on {backend} where at least {result.threshold_db:.0f} are needed, and its largest error is "
            f"{result.max_abs:.2g}; no bundle was written (are the pinned torch and onnxscript installed?)"
        )
    return result


def record(result: ParityResult, module_db: float) -> dict[str, str | float]:
    """What the manifest keeps of a check."""
    return {
        "backend": f"{result.backend} {package_version(result.backend)}",
        "output": result.output,
        "snr_db": round(result.snr_db, 2),
        "max_abs": float(f"{result.max_abs:.3g}"),
        "threshold_db": result.threshold_db,
        "module_snr_db": round(module_db, 2),
    }


def _outputs(graph: Graph, module: nn.Module, precision: Precision) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        outputs = module(*example_arguments(graph, precision, graph.checked))
    outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
    return {tensor.name: output.float().numpy() for tensor, output in zip(graph.outputs, outputs, strict=True)}


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":  # unknown to torch.from_numpy
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Engines advise on speed, which is no concern of a check."""
    log = logging.getLogger("vexpress")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
