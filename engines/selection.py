"""Which backends work here, which one `auto` takes, and why."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING

from vexpress_trt.engines.backend_name import PLANNED, on_gpu, split_backend
from vexpress_trt.engines.cpu import cpu
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import GpuStatus, gpu_status

if TYPE_CHECKING:
    from vexpress_trt.engines.bundle import Bundle
    from vexpress_trt.engines.call_sizes import ClipSizes
    from vexpress_trt.engines.engine import Engine

log = logging.getLogger("vexpress")

# The precisions a backend prefers, best first.
_PRECISIONS = {
    "openvino": ("fp32", "fp16", "bf16"),
    "onnxruntime": ("fp32", "fp16"),
    "torch": ("fp32", "bf16", "fp16"),
    "torch-cuda": ("fp32", "fp16", "bf16"),
    "onnxruntime-cuda": ("fp16", "fp32"),
    "tensorrt": ("fp16", "bf16", "fp32"),
    "tensorrt-rtx": ("fp16", "bf16", "fp32"),
}
# What `auto` tries, best first, and what each can compute in.
_AUTO_ORDER = {"openvino": ("fp32", "bf16"), "onnxruntime": ("fp32", "fp16"), "torch": ("fp32", "bf16", "fp16")}
_TORCH_CUDA = "pip install 'vexpress-trt[export,cuda]'"
_GPU_BACKENDS = (*PLANNED, "torch-cuda", "onnxruntime-cuda")  # the planned ones are what `auto` takes first
WISHES = ("backend", "dtype", "device", "gpu_id")  # what a request says to `choose_engines`
_NOT_RTX = ((9, 0), (10, 0), (10, 3))  # compute capabilities of data-centre GPUs


@dataclass(frozen=True)
class BackendStatus:
    """One row of the table in `vexpress doctor`.

    `version` is the installed version of the package behind it, or None; `devices` what it would run on; `reason` why
    it is not usable ("" if it is); `install_hint` the command that helps, or "".
    """

    name: str
    usable: bool
    version: str | None
    devices: tuple[str, ...]
    reason: str
    install_hint: str


@dataclass(frozen=True)
class EngineChoice:
    """What runs a bundle: a backend and why, the precision of the graphs it loads, and the type it computes in.

    `backend` is what `load_engine` takes; "torch-cuda:1" means the second GPU.
    """

    backend: str
    reason: str
    precision: str
    dtype: str

    @property
    def on_cpu(self) -> bool:
        """Whether all engines share this machine's processor cores."""
        return self.gpu is None

    @property
    def gpu(self) -> int | None:
        """The number of the GPU that the engines run on, or None."""
        kind, number = split_backend(self.backend)
        return number or 0 if kind in _GPU_BACKENDS else None

    @property
    def planned(self) -> bool:
        """Whether the engines are those that `vexpress build` has made."""
        return split_backend(self.backend)[0] in PLANNED


def choose_engines(
    bundle: "Bundle",
    *,
    backend: str = "auto",
    dtype: str = "auto",
    device: str = "auto",
    gpu_id: int = 0,
    clip: "ClipSizes | None" = None,
) -> EngineChoice:
    """Settle backend, graph precision and arithmetic for a bundle.

    `dtype` "auto" takes what is fast and close on the backend: bf16 on openvino where the CPU multiplies it, else fp32.
    onnxruntime and TensorRT compute in the graph's own precision; openvino and torch compute in `dtype` whatever the
    graph's. Where a GPU may be used and the bundle has TensorRT engines for it, "auto" takes them: those of all graphs,
    or with `clip` of those that it needs, for its sizes.
    Raises UserError for a backend, dtype or device that cannot be had, and names what would add it.
    """
    kind, _ = split_backend(backend)
    if kind in PLANNED and device != "cpu":
        return _planned_choice(bundle, backend, dtype, gpu_id, clip)
    if backend == "auto" and device != "cpu":
        planned = _planned_if_any(bundle, dtype, gpu_id, clip)
        if planned is not None:
            return planned
    if device == "cuda":
        backend = _cuda_backend(backend, gpu_id)
    elif device == "cpu" and kind in _GPU_BACKENDS:
        raise UserError(f"--backend {backend} runs on a GPU, --device is cpu: use --backend torch for the CPU")
    name, reason = choose_backend(backend, dtype)
    if split_backend(name)[0] in ("onnxruntime", "onnxruntime-cuda"):
        precision = choose_precision(name, bundle.precisions) if dtype == "auto" else dtype
        if precision == "bf16":
            place, other = ("a CPU", "openvino") if name == "onnxruntime" else ("its CUDA provider", "torch")
            raise UserError(f"onnxruntime cannot run bf16 on {place}: choose --dtype fp32, or --backend {other}")
        return EngineChoice(name, reason, _present(bundle, precision), precision)
    precision = "fp32" if dtype == "fp32" else choose_precision(name, bundle.precisions)
    computed = dtype
    if dtype == "auto":
        computed = cpu().fastest_dtype if name == "openvino" else "fp32"
    if name == "openvino" and computed == "fp16":
        raise UserError("openvino computes in fp32 or bf16 on a CPU: choose one of these for --dtype")
    return EngineChoice(name, reason, _present(bundle, precision), computed)


def _planned_choice(bundle: "Bundle", backend: str, dtype: str, gpu_id: int, clip: "ClipSizes | None") -> EngineChoice:
    """The bundle's own engines. Raises UserError where one is missing or cannot run here."""
    from vexpress_trt.engines.trt.fitting import Here, planned_precision

    kind, gpu = split_backend(backend)
    if gpu is None and gpu_id:
        choose_backend(kind)
        _require_gpu(gpu_id)
        backend = on_gpu(kind, gpu_id)
    choose_backend(backend)
    gpu = gpu_id if gpu is None else gpu
    status = next(status for status in available_backends() if status.name == kind)
    wanted = None if dtype == "auto" else _present(bundle, dtype)
    precision = planned_precision(bundle, Here.of(kind, gpu), wanted, clip)
    reason = f"{kind} {status.version} on {status.devices[gpu]}: the bundle has engines for it"
    return EngineChoice(backend, reason, precision, precision)


def _planned_if_any(bundle: "Bundle", dtype: str, gpu_id: int, clip: "ClipSizes | None") -> EngineChoice | None:
    """The best of the bundle's own engines that run here, if any do; else warns why those that are there do not."""
    from vexpress_trt.engines.bundle import ENGINES_FOLDER

    if gpu_status().reason:
        return None
    problems: dict[str, UserError] = {}
    for name in PLANNED:
        if any((bundle.root / ENGINES_FOLDER).glob(f"{name}-[0-9]*")):
            try:
                return _planned_choice(bundle, name, dtype, gpu_id, clip)
            except UserError as problem:
                problems[name] = problem
    for name, problem in problems.items():
        log.warning("%s's engines are passed over: %s", name, problem)
    return None


def _present(bundle: "Bundle", precision: str) -> str:
    bundle.graph("vae_decoder", precision)  # says how to add a precision that the bundle lacks
    return precision


def _cuda_backend(backend: str, gpu_id: int) -> str:
    """The backend that runs on a GPU. Raises UserError where there is none."""
    gpu = gpu_status()
    if gpu.reason:
        raise UserError(f"--device cuda: {gpu.reason}; leave it out to run on the CPU")
    _require_gpu(gpu_id)
    name = {"auto": "torch", "torch-cuda": "torch", "onnxruntime-cuda": "onnxruntime"}.get(backend, backend)
    if name not in ("torch", "onnxruntime"):
        raise UserError(f"--backend {backend} runs on CPUs: use --backend torch or onnxruntime with --device cuda")
    return on_gpu(f"{name}-cuda", gpu_id)


def _require_gpu(gpu_id: int) -> None:
    """Raises UserError where the driver has no GPU of this number."""
    count = len(gpu_status().devices)
    if not 0 <= gpu_id < count:
        there = "one GPU: choose 0" if count == 1 else f"{count} GPUs: choose 0 to {count - 1}"
        raise UserError(f"--gpu_id {gpu_id}: there is no such GPU; the driver lists {there}")


def available_backends() -> list[BackendStatus]:
    """The state of every backend, found without importing any of them."""
    gpu = gpu_status()
    gpus = tuple(device.name for device in gpu.devices)
    processor = (cpu().model,)
    return [
        _tensorrt("tensorrt", gpu, "pip install tensorrt-cu13", "tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
        _tensorrt(
            "tensorrt-rtx",
            gpu,
            "pip install tensorrt_rtx_cu13_bindings tensorrt_rtx_cu13_libs",
            "tensorrt_rtx",
            "tensorrt_rtx_cu13_bindings",
        ),
        _onnxruntime_cuda(gpus, gpu.reason),
        _torch_cuda(gpus, gpu.reason),
        _installed("openvino", processor, "pip install openvino", "openvino"),
        _installed("onnxruntime", processor, "pip install onnxruntime", "onnxruntime", "onnxruntime-gpu"),
        _installed("torch", processor, "pip install 'vexpress-trt[export]'", "torch"),
    ]


def choose_backend(requested: str = "auto", dtype: str = "auto") -> tuple[str, str]:
    """The backend to use and a sentence that says why; "auto" takes the best that works and computes in `dtype`.

    Raises UserError for an unknown or unusable backend, listing those that work and the command that installs it.
    """
    table = {status.name: status for status in available_backends()}
    usable = [status.name for status in table.values() if status.usable]
    works = f"here work: {', '.join(usable)}" if usable else "no backend works here"
    if requested == "auto":
        passed_over = False
        for name, types in _AUTO_ORDER.items():
            if table[name].usable and dtype in ("auto", *types):
                return name, _why(table[name], dtype, passed_over)
            passed_over |= table[name].usable
        needed = next(name for name, types in _AUTO_ORDER.items() if dtype in ("auto", *types))
        if usable:
            raise UserError(f"no backend here computes in {dtype}: `{table[needed].install_hint}` adds one; {works}")
        raise UserError(f"no backend works here: install one with `{table['onnxruntime'].install_hint}`")
    kind, gpu = split_backend(requested)
    status = table.get(kind)
    if status is None or (gpu is not None and not _may_have(status, gpu)):
        raise UserError(f"there is no backend {requested!r}; {works}")
    if not status.usable:
        install = f"; install it with `{status.install_hint}`" if status.install_hint else ""
        raise UserError(f"the backend {requested} cannot run here: {status.reason}{install}; {works}")
    return requested, f"{requested} {status.version}, as asked"


def choose_precision(backend: str, precisions: Sequence[str]) -> str:
    """The precision of a bundle that suits a backend best; its first choice if the bundle has none of its choices."""
    choices = _PRECISIONS[split_backend(backend)[0]]
    return next((precision for precision in choices if precision in precisions), choices[0])


def engine_class(backend: str) -> "type[Engine]":
    """The implementation of a backend that `choose_backend` returned."""
    kind, _ = split_backend(backend)
    if kind == "openvino":
        from vexpress_trt.engines.openvino_engine import OpenVinoEngine

        return OpenVinoEngine
    if kind in PLANNED:
        from vexpress_trt.engines.trt.engine import TensorRtEngine

        return TensorRtEngine
    if kind == "onnxruntime-cuda":
        from vexpress_trt.engines.onnxruntime_cuda_engine import OnnxRuntimeDeviceEngine

        return OnnxRuntimeDeviceEngine
    if kind == "onnxruntime":
        from vexpress_trt.engines.onnxruntime_engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine
    if kind == "torch-cuda":
        from vexpress_trt.engines.torch_cuda_engine import TorchDeviceEngine

        return TorchDeviceEngine
    from vexpress_trt.engines.torch_engine import TorchEngine

    return TorchEngine


def _may_have(status: BackendStatus, gpu: int) -> bool:
    return status.name in _GPU_BACKENDS and gpu < max(1, len(status.devices))


def _why(status: BackendStatus, dtype: str, passed_over: bool) -> str:
    unit = "" if dtype == "fp32" else cpu().bf16_unit
    reason = {
        "openvino": "the fastest here" + (f", bf16 on {unit}" if unit else ""),
        "onnxruntime": "openvino is not installed",
        "torch": "neither openvino nor onnxruntime is installed",
    }[status.name]
    if passed_over:
        reason = f"the best here that computes in {dtype}"
    return f"{status.name} {status.version} on {status.devices[0]}: {reason}"


def _installed(name: str, devices: tuple[str, ...], hint: str, *packages: str) -> BackendStatus:
    version = package_version(*packages)
    present = version is not None and find_spec(name) is not None
    reason = "" if present else f"{name} is not installed"
    return BackendStatus(name, present, version, devices, reason, "" if present else hint)


def _tensorrt(name: str, gpu: GpuStatus, hint: str, *packages: str) -> BackendStatus:
    version, devices = package_version(*packages), tuple(device.name for device in gpu.devices)
    reason, install = gpu.reason, ""
    if not reason and name == "tensorrt-rtx" and all(device.capability in _NOT_RTX for device in gpu.devices):
        reason = f"it does not support {devices[0]}"
    elif not reason and version is None:
        reason, install = f"{name} is not installed", hint
    elif not reason and package_version("cuda-bindings") is None:
        reason, install = "cuda-bindings is not installed", "pip install 'vexpress-trt[cuda]'"
    return BackendStatus(name, not reason, version, devices, reason, install)


def _onnxruntime_cuda(devices: tuple[str, ...], missing: str) -> BackendStatus:
    version, name = package_version("onnxruntime-gpu"), "onnxruntime-cuda"
    if missing:
        return BackendStatus(name, False, version, (), missing, "")
    if version is None:
        hint = "pip uninstall onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
        return BackendStatus(name, False, None, devices, "onnxruntime-gpu is not installed", hint)
    if package_version("cuda-bindings") is None:
        hint = "pip install 'vexpress-trt[cuda]'"
        return BackendStatus(name, False, version, devices, "cuda-bindings is not installed", hint)
    return BackendStatus(name, True, version, devices, "", "")


def _torch_cuda(devices: tuple[str, ...], missing: str) -> BackendStatus:
    version = package_version("torch")
    if missing:
        return BackendStatus("torch-cuda", False, version, (), missing, "")
    if version is None or "+cpu" in version:
        reason = "torch is not installed" if version is None else f"torch {version} is built without CUDA"
        return BackendStatus("torch-cuda", False, version, devices, reason, _TORCH_CUDA)
    if package_version("cuda-bindings") is None:
        return BackendStatus("torch-cuda", False, version, devices, "cuda-bindings is not installed", _TORCH_CUDA)
    return BackendStatus("torch-cuda", True, version, devices, "", "")


def package_version(*packages: str) -> str | None:
    """The version of the first of these packages that is installed, else None."""
    for package in packages:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None
