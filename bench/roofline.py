"""What this machine's processor can do at best, measured on the engine that runs the job, and the share a call reaches.

A model of one operation goes through the same engine, with the same threads and arithmetic, as the networks do: a
matrix product and a 3x3 convolution of sizes like the real networks' larger layers. Whichever is faster is the ceiling.
"""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from vexpress_trt.bench.flops import FlopCount
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.manifest import GraphSpec, Manifest, TensorSpec
from vexpress_trt.engines.selection import EngineChoice, engine_class

if TYPE_CHECKING:
    import onnx

# What each backend computes fast enough on a CPU to have a ceiling of interest.
CEILING_DTYPES = {"openvino": ("fp32", "bf16"), "onnxruntime": ("fp32",), "torch": ("fp32", "bf16")}
BEST_OF = 5
_OPSET = 20


@dataclass(frozen=True)
class Workload:
    """Sizes of the two operations; the defaults are large enough to be bound by arithmetic, not by memory."""

    rows: int = 4096
    columns: int = 2048
    frames: int = 8
    channels: int = 320
    side: int = 64

    @property
    def matmul_flop(self) -> int:
        """[rows, columns] times [columns, columns]."""
        return 2 * self.rows * self.columns**2

    @property
    def convolution_flop(self) -> int:
        """3x3 on [frames, channels, side, side] with as many channels out."""
        return 2 * self.frames * self.channels**2 * 9 * self.side**2


@dataclass(frozen=True)
class Ceiling:
    """The best rates of one arithmetic on one engine, in GFLOP/s."""

    dtype: str
    matmul_gflops: float
    convolution_gflops: float

    @property
    def gflops(self) -> float:
        """The better of both."""
        return max(self.matmul_gflops, self.convolution_gflops)


@dataclass(frozen=True)
class Reached:
    """How near a stage's median call comes to the ceiling of its arithmetic: `gflop` per call, `gflops` per second."""

    stage: str
    flop: FlopCount
    gflop: float
    gflops: float
    share: float


def reached(stage: str, flop: FlopCount, seconds: float, ceiling: Ceiling) -> Reached:
    """A call of so many operations that took `seconds`, against the ceiling."""
    gflop = flop.total / 1e9
    return Reached(stage, flop, gflop, gflop / seconds, gflop / seconds / ceiling.gflops)


def measure_ceilings(
    choice: EngineChoice,
    manifest: Manifest,
    *,
    threads: int | None = None,
    dtypes: Iterable[str] | None = None,
    workload: Workload | None = None,
    repeats: int = BEST_OF,
) -> tuple[Ceiling, ...]:
    """The ceilings of the chosen backend, best of `repeats` calls after a warm-up.

    `dtypes` None takes those in `CEILING_DTYPES`. `manifest` only completes the model that the engine is given.
    """
    if dtypes is None:
        dtypes = CEILING_DTYPES.get(choice.backend, (choice.dtype,))
    workload = workload or Workload()
    measure = _torch_rates if choice.backend.startswith("torch") else _graph_rates
    return tuple(
        Ceiling(dtype, *measure(choice.backend, manifest, dtype, threads, workload, repeats)) for dtype in dtypes
    )


def _best(call: Callable[[], object], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        began = perf_counter()
        call()
        seconds.append(perf_counter() - began)
    return min(seconds)


def _graph_rates(
    backend: str, manifest: Manifest, dtype: str, threads: int | None, workload: Workload, repeats: int
) -> tuple[float, float]:
    """GFLOP/s of both operations on an engine that runs ONNX."""
    with tempfile.TemporaryDirectory(prefix="vexpress-roofline-") as folder:
        bundle = Bundle(Path(folder), manifest)
        return tuple(
            flop / 1e9 / _best_of_engine(bundle, backend, operation, dtype, threads, workload, repeats)
            for operation, flop in (("MatMul", workload.matmul_flop), ("Conv", workload.convolution_flop))
        )


def _best_of_engine(
    bundle: Bundle, backend: str, operation: str, dtype: str, threads: int | None, workload: Workload, repeats: int
) -> float:
    import onnx

    values, model = _one_operation(operation, workload)
    path = f"{operation.lower()}.onnx"
    onnx.save(model, bundle.path(path))
    spec = GraphSpec(
        f"roofline_{operation.lower()}",
        "fp32",
        path,
        (TensorSpec("x", "float32", values.shape),),
        (TensorSpec("y", "float32", values.shape),),
        (path,),
    )
    with engine_class(backend)(bundle, spec, backend=backend, threads=threads, dtype=dtype) as engine:
        engine.bind(x=values)
        return _best(engine.run, repeats)


def _one_operation(operation: str, workload: Workload) -> tuple[np.ndarray, "onnx.ModelProto"]:
    """An input and a model y = operation(x, weight); x and y have the same shape."""
    from onnx import TensorProto, helper, numpy_helper

    random, size = np.random.default_rng(0), workload
    if operation == "MatMul":
        shape, weight, settings = (size.rows, size.columns), (size.columns, size.columns), {}
    else:
        shape = (size.frames, size.channels, size.side, size.side)
        weight, settings = (size.channels, size.channels, 3, 3), {"pads": [1, 1, 1, 1]}
    graph = helper.make_graph(
        [helper.make_node(operation, ["x", "weight"], ["y"], **settings)],
        "roofline",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(random.standard_normal(weight, dtype=np.float32), "weight")],
    )
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    return random.standard_normal(shape, dtype=np.float32), model


def _torch_rates(
    backend: str, manifest: Manifest, dtype: str, threads: int | None, workload: Workload, repeats: int
) -> tuple[float, float]:
    """GFLOP/s of both operations in eager PyTorch, contiguous as the networks' tensors are."""
    import torch

    from vexpress_trt.engines.cpu import usable_cores

    torch.set_num_threads(threads or usable_cores())
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    size = workload
    with torch.inference_mode():
        rows, square = torch.randn(size.rows, size.columns).to(kind), torch.randn(size.columns, size.columns).to(kind)
        frames = torch.randn(size.frames, size.channels, size.side, size.side).to(kind)
        kernel = torch.randn(size.channels, size.channels, 3, 3).to(kind)
        product = _best(lambda: rows @ square, repeats)
        convolution = _best(lambda: torch.nn.functional.conv2d(frames, kernel, padding=1), repeats)
    return size.matmul_flop / 1e9 / product, size.convolution_flop / 1e9 / convolution
