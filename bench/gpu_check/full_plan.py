"""The guided denoiser of a bundle at its own size by TensorRT: how long it takes to build and to run."""

import numpy as np

from vexpress_trt.bench.flops import count_graph
from vexpress_trt.bench.gpu_check.parts import CheckFailed, Record, Setting
from vexpress_trt.bench.gpu_check.plans import best_sizes, enqueued_and_captured, flavours_here
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.engine import load_engine
from vexpress_trt.engines.trt.build import BuildSettings, build_engines
from vexpress_trt.engines.verify import vector_inputs

GRAPH = "denoiser_guided"


def check(setting: Setting, record: Record) -> None:
    """Builds into the bundle what is missing there, which takes minutes. Raises Skipped where no TensorRT runs here."""
    flavours = flavours_here(record)
    bundle = Bundle.open(setting.bundle)
    for backend in flavours:
        report = build_engines(BuildSettings(bundle.root, backend, graphs=(GRAPH,)))
        spec = bundle.graph(GRAPH, report.precision)
        sizes = best_sizes(bundle, spec)
        name = f"{backend}, {spec.precision}"
        record("sizes", sizes)
        record(f"{name}, built in s", report.engines[0].seconds)
        inputs = vector_inputs(spec, sizes)
        with load_engine(bundle, GRAPH, backend=backend, precision=spec.precision) as engine:
            outputs = {key: array.copy() for key, array in engine.run(**inputs).items()}
            found = enqueued_and_captured(engine, inputs, outputs)
            found["mib"] = [size / 2**20 for size in engine.gpu_bytes or ()]
        found["tflops"] = count_graph(bundle, spec, sizes).total / found["ms"] / 1e9
        record(name, found)
        if not np.isfinite(outputs["prediction"]).all():
            raise CheckFailed(f"{name}: the prediction is not finite")
        if not found["captured_equals_enqueued"]:
            raise CheckFailed(f"{name}: captured and enqueued runs differ")
