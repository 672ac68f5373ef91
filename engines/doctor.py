"""What this machine has, what works on it, and what is missing: the checks behind `vexpress doctor`."""

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from vexpress_trt.engines.cpu import cpu, usable_cores
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.engines.memory import available_memory
from vexpress_trt.engines.selection import available_backends, choose_backend, package_version

State = Literal["ok", "absent", "problem"]

_PACKAGES = ("vexpress-trt", "numpy", "av", "opencv-python-headless", "onnx", "onnxruntime", "openvino", "torch")
_FACE_MODELS = ("pnet.onnx", "rnet.onnx", "onet.onnx")
_INSIGHTFACE_FOLDER = Path("~/.insightface/models/buffalo_l")
_MARKS: dict[State, str] = {"ok": "ok", "absent": "-", "problem": "!!"}
_IMPORTED = ("openvino", "onnxruntime")  # backends that are tried; torch takes seconds to import
_GIB = 2**30
_ENGINES_NEEDED = ", for bundles with engines: `vexpress build` makes them"
_NEEDS = {"tensorrt": _ENGINES_NEEDED, "tensorrt-rtx": _ENGINES_NEEDED}


@dataclass(frozen=True)
class Check:
    """One line of the report: "ok"; "absent" for what is optional and not there; "problem" for what must be mended.

    `help` is the command or the action that mends it, or "".
    """

    group: str
    name: str
    state: State
    detail: str
    help: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def doctor() -> list[Check]:
    """All checks, in the order in which they are shown. Never raises: what cannot be found out is a problem itself."""
    groups: list[tuple[str, Callable[[], list[Check]]]] = [
        ("machine", _machine),
        ("software", _software),
        ("media", _media),
        ("backends", _backends),
        ("faces", _faces),
    ]
    checks: list[Check] = []
    for group, run in groups:
        try:
            checks += run()
        except Exception as problem:  # a report about a broken machine must not itself break
            checks.append(Check(group, group, "problem", f"this check failed: {type(problem).__name__}: {problem}"))
    return checks


def format_checks(checks: list[Check]) -> str:
    """The report as text: one block per group, one line per check, and what helps below it."""
    width = max((len(check.name) for check in checks), default=0)
    lines: list[str] = []
    group = None
    for check in checks:
        if check.group != group:
            lines += ([""] if lines else []) + [check.group]
            group = check.group
        lines.append(f"  {_MARKS[check.state]:<2} {check.name:<{width}}  {check.detail}".rstrip())
        if check.help:
            lines.append(f"     {'':<{width}}  -> {check.help}")
    problems = sum(check.state == "problem" for check in checks)
    verdict = {0: "nothing is wrong", 1: "1 problem, marked !!"}.get(problems, f"{problems} problems, marked !!")
    return "\n".join([*lines, "", verdict])


def _machine() -> list[Check]:
    import psutil

    processor, memory, disk = cpu(), psutil.virtual_memory().total, shutil.disk_usage(Path.cwd())
    flags = ", ".join(processor.flags) or "instruction sets not known"
    gpu = gpu_status()
    gpus = [
        f"{device.name}, {device.memory / _GIB:.0f} GiB, compute capability {'.'.join(map(str, device.capability))}"
        for device in gpu.devices
    ]
    driver = f"CUDA {gpu.cuda} driver" if gpu.cuda else ""
    return [
        Check("machine", "system", "ok", platform.platform()),
        Check("machine", "processor", "ok", f"{processor.model} ({flags})"),
        Check("machine", "cores", "ok", f"{usable_cores()} usable of {os.cpu_count()} logical"),
        Check("machine", "memory", "ok", f"{_gib(available_memory())} available of {_gib(memory)}"),
        Check("machine", "disk", "ok", f"{_gib(disk.free)} free in {Path.cwd()}"),
        Check(
            "machine",
            "GPU",
            "ok" if gpus else "absent",
            "; ".join([*gpus, driver]) if gpus else ", ".join(filter(None, [gpu.reason, driver])),
        ),
    ]


def _software() -> list[Check]:
    old = sys.version_info < (3, 11)
    checks = [
        Check(
            "software",
            "python",
            "problem" if old else "ok",
            platform.python_version(),
            "install Python 3.11 or newer" if old else "",
        )
    ]
    versions = {package: package_version(package) for package in _PACKAGES}
    optional = {"torch": "pip install 'vexpress-trt[export]' (only to export and for --backend torch)"}
    for package, version in versions.items():
        if version is not None:
            checks.append(Check("software", package, "ok", version))
        elif package in optional:
            checks.append(Check("software", package, "absent", "not installed", optional[package]))
        elif package not in ("opencv-python-headless", "openvino", "onnxruntime"):
            checks.append(Check("software", package, "problem", "not installed", f"pip install {package}"))
    if versions["opencv-python-headless"] is None and find_spec("cv2") is None:
        checks.append(Check("software", "OpenCV", "problem", "not installed", "pip install opencv-python-headless"))
    native = find_spec("vexpress_trt.runtime._native")
    if native is not None:
        checks.append(Check("software", "native code", "ok", Path(native.origin or "").name))
    else:
        hint = "pip install --force-reinstall vexpress-trt (from a checkout: pip install -e .)"
        checks.append(Check("software", "native code", "problem", "the compiled median filter is missing", hint))
    return checks


def _media() -> list[Check]:
    try:
        av = importlib.import_module("av")
    except ImportError as problem:
        detail = f"cannot be imported ({problem})"
        return [Check("media", "PyAV", "problem", detail, "pip install --force-reinstall av")]
    return [_encoder(av, "H.264 encoder", "libx264", "video"), _encoder(av, "AAC encoder", "aac", "sound")]


def _encoder(av: Any, name: str, codec: str, kind: str) -> Check:
    try:
        av.Codec(codec, "w")
    except ValueError:  # PyAV's exception for an unknown codec derives from it
        hint = "pip install --force-reinstall --only-binary av av"
        return Check("media", name, "problem", f"this PyAV has no {codec}: {kind} cannot be written", hint)
    return Check("media", name, "ok", codec)


def _backends() -> list[Check]:
    checks = []
    for status in available_backends():
        devices = ", ".join(status.devices)
        broken = _import_problem(status.name) if status.usable and status.name in _IMPORTED else ""
        if broken:
            detail = f"{status.version} is installed, but cannot be imported ({broken})"
            checks.append(Check("backends", status.name, "problem", detail, "install it anew, with what it lacks"))
            continue
        if status.usable:
            detail = f"{status.version} on {devices}" + _lacking(status.name)
        else:
            installed = f" ({status.version} is installed)" if status.version else ""
            detail = status.reason + installed
            if status.name == "tensorrt-rtx" and status.version:
                detail += "; `vexpress build --target` makes its engines ahead of time here, which needs no GPU"
        checks.append(Check("backends", status.name, "ok" if status.usable else "absent", detail, status.install_hint))
    try:
        _, reason = choose_backend("auto")
    except UserError as problem:
        return [*checks, Check("backends", "auto", "problem", str(problem))]
    return [*checks, Check("backends", "auto", "ok", f"takes {reason}")]


def _import_problem(package: str) -> str:
    """Why a package that is installed cannot be imported, or ""."""
    try:
        importlib.import_module(package)
    except ImportError as problem:
        return str(problem)
    return ""


def _lacking(backend: str) -> str:
    """What a backend that works here needs besides, or would be faster with."""
    if backend == "torch-cuda" and package_version("triton") is None:
        return ", slower than with the denoiser's fused kernels: `pip install triton`"
    return _NEEDS.get(backend, "")


def _faces() -> list[Check]:
    from importlib.resources import files

    try:
        missing = [name for name in _FACE_MODELS if not (files("vexpress_trt.models") / "mtcnn" / name).is_file()]
    except ModuleNotFoundError:
        missing = list(_FACE_MODELS)
    if missing:
        hint = "pip install --force-reinstall vexpress-trt"
        mtcnn = Check("faces", "MTCNN", "problem", f"the package lacks {', '.join(missing)}", hint)
    else:
        mtcnn = Check("faces", "MTCNN", "ok", "embedded in the package")
    return [mtcnn, _insightface()]


def _insightface() -> Check:
    version = package_version("insightface")
    folder = Path(os.path.expanduser(_INSIGHTFACE_FOLDER))
    models = sorted(folder.glob("*.onnx")) if folder.is_dir() else []
    fetch = "vexpress fetch --checkpoints DIR (its models are for non-commercial research only)"
    if version is None:
        have = "its models are there, the package is not installed" if models else "not installed"
        return Check("faces", "insightface", "absent", have, "pip install 'vexpress-trt[face]'")
    if not models:
        return Check("faces", "insightface", "absent", f"{version}, no models in {folder}", fetch)
    return Check("faces", "insightface", "ok", f"{version}, {len(models)} models in {folder}")


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
