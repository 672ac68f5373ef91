"""`vexpress export-triton`: a model repository for a fleet's own Triton, whole or absent."""

import shutil
from pathlib import Path
from typing import Any

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.engines.trt.inventory import EngineRow, list_engines
from vexpress_trt.serving import protocol
from vexpress_trt.serving.limits import Limits
from vexpress_trt.serving.repository import ServerSettings, write_models

_BUNDLE = Path("1", "bundle")  # in the streaming model's folder
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16", "int64": "TYPE_INT64"}


def export_repository(
    bundle: Path,
    repository: Path,
    *,
    python: str,
    workers: tuple[dict[str, Any], ...],
    limits: Limits,
    copy: bool = False,
    engines: bool = False,
    force: bool = False,
) -> None:
    """Write a repository for `bundle`.

    With `copy` the bundle lies in it, and only it has to be moved. With `engines` there is a model of the onnxruntime
    backend for each graph and precision, and of the tensorrt backend for each usable plan (of full TensorRT: Triton has
    no backend for TensorRT-RTX). Raises UserError for an unusable bundle, or a folder that exists and may not be
    replaced.
    """
    opened = Bundle.open(bundle)
    if repository.exists() and not force:
        raise UserError(f"{repository} exists: give --force to replace it, or another folder")
    if copy:
        workers = tuple({**options, "bundle": str(_BUNDLE)} for options in workers)
    with atomic_path(repository, directory=True) as folder:
        write_models(folder, ServerSettings(python, workers, limits))
        if copy:
            shutil.copytree(bundle, folder / protocol.STREAM_MODEL / _BUNDLE)
        if engines:
            for graph in opened.manifest.graphs:
                _write_onnx_model(folder, opened, graph)
            for row in list_engines(bundle):
                if row.backend == "tensorrt" and not row.problem:
                    _write_plan_model(folder, bundle, row)


def onnx_config(name: str, graph: GraphSpec) -> str:
    """The config.pbtxt of one graph on Triton's onnxruntime backend; what is a symbol in the manifest is free."""
    tensors = [*(("input", spec) for spec in graph.inputs), *(("output", spec) for spec in graph.outputs)]
    lines = [f'name: "{name}"', 'platform: "onnxruntime_onnx"', "max_batch_size: 0"]
    return "\n".join([*lines, *(f"{side} {{ {_tensor(spec)} }}" for side, spec in tensors), ""])


def _tensor(spec: TensorSpec) -> str:
    dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in spec.shape)
    return f'name: "{spec.name}" data_type: {_TYPES[spec.dtype]} dims: [{dims}]'


def _write_onnx_model(folder: Path, bundle: Bundle, graph: GraphSpec) -> None:
    name = f"vexpress_{graph.name}_{graph.precision}"
    source = bundle.path(graph.path)
    version = folder / name / "1"
    version.mkdir(parents=True)
    (folder / name / "config.pbtxt").write_text(onnx_config(name, graph), encoding="utf-8")
    shutil.copyfile(source, version / "model.onnx")
    for file in graph.files:  # weights lie beside their graph
        if Path(file).parent == Path(graph.path).parent and file != graph.path:
            shutil.copyfile(bundle.path(file), version / Path(file).name)


def _write_plan_model(folder: Path, bundle: Path, row: EngineRow) -> None:
    """One plan on Triton's tensorrt backend, which reads names and sizes from the plan itself."""
    name = f"vexpress_{Path(row.plan).stem}_{Path(row.plan).parent.name}"
    (folder / name / "1").mkdir(parents=True)
    text = f'name: "{name}"\nplatform: "tensorrt_plan"\nmax_batch_size: 0\n'
    (folder / name / "config.pbtxt").write_text(text, encoding="utf-8")
    shutil.copyfile(bundle / row.plan, folder / name / "1" / "model.plan")
