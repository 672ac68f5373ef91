"""TensorRT and TensorRT-RTX, whichever are here: the model in the box built for this GPU, compared, captured, run.

In FP32, and in FP16 where the exporter's packages are. Needs neither PyTorch on the GPU nor, for FP32, PyTorch at all.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from vexpress_trt.bench.gpu_check.memory import GROWTH_MIB, used_mib
from vexpress_trt.bench.gpu_check.parts import CheckFailed, Faults, Record, Setting, Skipped
from vexpress_trt.bench.gpu_check.short_clip import FLOOR_DB, frames_of, likeness, short_request
from vexpress_trt.engines.backend_name import PLANNED
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.driver import driver
from vexpress_trt.engines.engine import Engine, load_engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.trt.build import BuildSettings, build_engines
from vexpress_trt.engines.trt.fitting import Here
from vexpress_trt.engines.trt.profile import ProfileSettings
from vexpress_trt.engines.verify import difference, threshold_of, vector_inputs
from vexpress_trt.runtime.cuda.gpu import GpuDevice
from vexpress_trt.runtime.cuda.running import wait_for

EXPORTER = ("torch", "diffusers", "transformers", "onnxscript")
SECONDS, STEPS = 2.4, 5
SMALL_SECONDS, SMALL_STEPS = 0.4, 1
ROUNDS = 5
FLOOR = FLOOR_DB["fp16"]  # also in FP32, which TensorRT multiplies with ten bits of mantissa


def check(setting: Setting, record: Record) -> None:
    """Raises Skipped where no TensorRT runs here; CheckFailed where a graph or frame differs from the CPU's, a captured
    run from an enqueued one, or where memory does not come back."""
    flavours = flavours_here(record)
    faults = Faults()
    with tempfile.TemporaryDirectory(prefix="vexpress-check-") as folder:
        bundle = _bundle(Path(folder), setting, record)
        clip = _Clip(Path(folder), bundle, setting, record)
        for backend in flavours:
            for precision in bundle.precisions:
                with faults.of(f"{backend}, {precision}"):
                    _check_backend(bundle, backend, precision, record, faults)
                with faults.of(f"{backend}, {precision}, clip"):
                    clip.compare(backend, precision, record)
    faults.tell()


def flavours_here(record: Record) -> list[str]:
    """The backends that run here; raises Skipped with the reasons where none does."""
    found, reasons = [], {}
    for backend in PLANNED:
        try:
            here = Here.of(backend)
        except UserError as problem:
            reasons[backend] = str(problem)
        else:
            record(backend, {"version": here.tensorrt.version, "builds for": here.target})
            found.append(backend)
    if not found:
        raise Skipped("; ".join(reasons.values()))
    for backend, reason in reasons.items():
        record(f"skipped {backend}", reason)
    return found


def compare(bundle: Bundle, backend: str, spec: GraphSpec) -> tuple[dict[str, Any], list[str]]:
    """What was found of a graph's engine at its best sizes, and what of it is wrong.

    Loading holds its names and types to the manifest, running its sizes.
    """
    sizes = best_sizes(bundle, spec)
    exact = bundle.graph(spec.name, "fp32")
    with load_engine(bundle, spec.name, backend="onnxruntime", precision="fp32") as reference:
        expected = {name: array.copy() for name, array in reference.run(**vector_inputs(exact, sizes)).items()}
    inputs = vector_inputs(spec, sizes)
    with load_engine(bundle, spec.name, backend=backend, precision=spec.precision) as engine:
        outputs = {name: array.copy() for name, array in engine.run(**inputs).items()}
        found = {
            "snr_db": min(difference(value, outputs[name].astype(np.float32))[0] for name, value in expected.items()),
            **enqueued_and_captured(engine, inputs, outputs),
            "mib": [size / 2**20 for size in engine.gpu_bytes or ()],
        }
    wrong = []
    needed = threshold_of(spec, backend, None)
    if found["snr_db"] < needed:
        wrong.append(f"{found['snr_db']:.1f} dB from onnxruntime in FP32, {needed:.0f} are needed")
    if not found["captured_equals_enqueued"]:
        wrong.append("captured and enqueued runs differ")
    return found, wrong


def best_sizes(bundle: Bundle, spec: GraphSpec) -> dict[str, int]:
    """Of the symbols of a graph, the sizes that its engine is built for first of all."""
    profile = ProfileSettings().of(spec, bundle.manifest.model)
    return {symbol: own.best for symbol, own in profile.ranges.items()}


def enqueued_and_captured(
    engine: Engine, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Whether runs on a stream give the same bits captured and not, and the milliseconds of a captured one.

    `outputs`: of `run`, for their shapes and types.
    """
    device = GpuDevice()
    try:
        stream, arrived = device.stream(), device.event()
        buffers = device.arena({name: (array.shape, array.dtype) for name, array in outputs.items()})
        hosts = {name: device.pinned(array.shape, array.dtype) for name, array in outputs.items()}
        engine.bind(**inputs)
        engine.bind_buffers(**buffers)

        def result(work: Callable[[], None]) -> list[bytes]:
            for buffer in buffers.values():
                device.clear(buffer, stream)
            work()
            for name, buffer in buffers.items():
                device.download(buffer, hosts[name], stream)
            device.record(arrived, stream)
            wait_for(device, arrived, [engine])
            return [host.tobytes() for host in hosts.values()]

        enqueue = partial(engine.enqueue, stream)
        enqueued = result(enqueue)
        replay = engine.capture(stream, enqueue)
        found: dict[str, Any] = {
            "captured": replay is not enqueue,
            "captured_equals_enqueued": result(replay) == enqueued,
        }
        gpu = driver(0)
        with gpu.current():
            found["ms"] = median(gpu.milliseconds(stream, replay) for _ in range(ROUNDS))
        return found
    finally:
        device.close()


def _bundle(folder: Path, setting: Setting, record: Record) -> Bundle:
    """A copy of the model in the box, with FP16 beside its FP32 where that can be exported."""
    from vexpress_trt.models.box.box import BOX, CHECKPOINTS, shipped_bundle

    root = shutil.copytree(shipped_bundle(), folder / "box.bundle", ignore=shutil.ignore_patterns("engines"))
    missing = [name for name in EXPORTER if find_spec(name) is None]
    if setting.quick or missing:
        why = f"not installed: {', '.join(missing)}" if missing else "--quick"
        record("skipped fp16", f"its graphs are not exported: {why}")
        return Bundle.open(root)
    from vexpress_trt.export.build_bundle import export_bundle
    from vexpress_trt.export.checkpoints import load_checkpoints

    model = Bundle.open(root).manifest.model
    report = export_bundle(
        load_checkpoints(BOX / CHECKPOINTS),
        root,
        precisions=("fp16",),
        image_width=model.image_width,
        image_height=model.image_height,
        context_frames=model.context_frames,
    )
    record("exported", {graph.graph: graph.seconds for graph in report.graphs})
    return Bundle.open(root)


def _check_backend(bundle: Bundle, backend: str, precision: str, record: Record, faults: Faults) -> None:
    """Build all graphs and look at each. Raises CheckFailed where memory does not come back."""
    name = f"{backend}, {precision}"
    report = build_engines(BuildSettings(bundle.root, backend, precision))
    record(f"{name}, built in s", {engine.graph: engine.seconds for engine in report.engines})
    record(f"{name}, plans in MiB", {engine.graph: round(engine.plan_bytes / 2**20, 1) for engine in report.engines})
    for engine in report.engines:
        with faults.of(f"{name}, {engine.graph}"):
            found, wrong = compare(bundle, backend, bundle.graph(engine.graph, precision))
            record(f"{name}, {engine.graph}", found)
            if wrong:
                raise CheckFailed("; ".join(wrong))
    used = []
    spec = bundle.graph("kps_guider", precision)
    for _ in range(3):
        compare(bundle, backend, spec)
        used.append(used_mib())
    record(f"{name}, MiB in use after an engine is closed", used)
    if used[-1] - used[0] > GROWTH_MIB:
        raise CheckFailed(f"{used[-1] - used[0]:.0f} MiB do not come back when engines are closed")


class _Clip:
    """A clip by the CPU, made once, and by TensorRT."""

    def __init__(self, folder: Path, bundle: Bundle, setting: Setting, record: Record) -> None:
        if find_spec("av") is None:
            record("skipped clips", "PyAV, which reads the speech, is not installed")
            self._request = None
            return
        seconds, steps = (SMALL_SECONDS, SMALL_STEPS) if setting.quick else (SECONDS, STEPS)
        request = short_request(folder, seconds, bundle=bundle.root, steps=steps)
        self._request = replace(request, device="cuda")
        by_processor = replace(request, backend="onnxruntime", device="cpu", dtype="fp32")
        self._expected, about = frames_of(by_processor)
        record("clip on the CPU", about)

    def compare(self, backend: str, precision: str, record: Record) -> None:
        """Raises CheckFailed where the frames of a backend in a precision are not like the CPU's."""
        if self._request is None:
            return
        before = used_mib()
        frames, about = frames_of(replace(self._request, backend=backend, dtype=precision))
        about["psnr_to_the_cpu_db"] = likeness(frames, self._expected)
        about["mib_in_use_before_and_after"] = [before, used_mib()]
        record(f"{backend}, {precision}, clip", about)
        if about["psnr_to_the_cpu_db"] < FLOOR:
            raise CheckFailed(f"{about['psnr_to_the_cpu_db']:.1f} dB from the CPU's frames")
