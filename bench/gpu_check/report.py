"""The check's results as JSON and Markdown, and the machine they come from."""

import json
import re
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vexpress_trt.bench.gpu_check.digest import figures_table, kinds_table
from vexpress_trt.bench.gpu_check.parts import PARTS, Part, PartResult, Setting
from vexpress_trt.bench.gpu_check.surroundings import ask_nvidia_smi, gpu_state
from vexpress_trt.bench.machine import describe_machine
from vexpress_trt.bench.report import number, table
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.engines.selection import package_version

_ASKED = {
    "driver_version": "driver",
    "memory.total": "gpu_memory",
    "power.limit": "power_limit",
    "clocks.max.sm": "clock_limit",
}
# Of the packages that a GPU's figures depend on, those that are no part of the machine's description already.
_PACKAGES = ("triton", "cuda-bindings", "nvidia-cudnn-cu13", "nvidia-cublas", "onnxruntime-gpu", "tensorrt")
# What the report's first line has, each with the words before it.
_SHOWN = {"gpu": "", "gpu_memory": "", "power_limit": "", "driver": "driver ", "torch_cuda": "CUDA ", "cudnn": "cuDNN "}


def describe_gpu() -> dict[str, Any]:
    """The machine, the GPU that the parts run on, driver and what CUDA packages there are; nothing is imported that
    would start the GPU."""
    devices = gpu_status().devices
    name = devices[0].name if devices else "none"
    found: dict[str, Any] = {"gpu": name, **describe_machine(), **ask_nvidia_smi(name, _ASKED), **gpu_state(name)}
    found["packages"] |= {package: version for package in _PACKAGES if (version := package_version(package))}
    try:
        import torch

        found["torch_cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
    except ImportError:
        pass
    return found


def write_results(results: list[PartResult], machine: dict[str, Any], setting: Setting, folder: Path) -> Path:
    """Write check_<GPU>.json and .md, in place of what an earlier run on such a GPU left; returns the latter."""
    path = folder / f"check_{file_name(machine['gpu'])}.md"
    folder.mkdir(parents=True, exist_ok=True)
    document = as_document(results, machine, setting)
    path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    try:
        text = as_markdown(results, machine, setting)
    except Exception:  # a mistake of ours in the words must not end a check: the figures are in the other file
        text = traceback.format_exc()
    path.write_text(text, encoding="utf-8")
    return path


def as_document(results: list[PartResult], machine: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """What is written as JSON."""
    return {
        "kind": "gpu_check",
        "machine": machine,
        "quick": setting.quick,
        "parts": [asdict(result) for result in results],
    }


def file_name(gpu: str) -> str:
    """A GPU's name as a part of a file's: "NVIDIA GeForce RTX 4090" -> "geforce_rtx_4090"."""
    return re.sub(r"[^a-z0-9]+", "_", gpu.lower().removeprefix("nvidia ")).strip("_")


def as_markdown(results: list[PartResult], machine: dict[str, Any], setting: Setting) -> str:
    """The machine, a table of parts, those of the figures that matter, and below them what each part found."""
    about = [f"{words}{machine[key]}" for key, words in _SHOWN.items() if machine.get(key) is not None]
    names = {result.name for result in results}
    packages = [f"{name} {version}" for name, version in machine["packages"].items()]
    lines = [
        f"GPU {', '.join(about)}; Python {machine['python']}; {machine['cores']} cores of "
        f"{machine['cpu']}{'; quick: small networks only' if setting.quick else ''}",
        "",
        f"Packages: {', '.join(packages) or 'none'}",
        "",
        table(
            ("part", "outcome", "s"),
            [(result.name, result.outcome, number(result.seconds)) for result in results]
            + [(name, _why_not(part), "") for name, part in PARTS.items() if name not in names],
        ),
        *(f"\n{found}" for found in (figures_table(results), kinds_table(results)) if found),
    ]
    for result in results:
        lines += ["", f"### {result.name}", ""]
        if result.found:
            lines.append(table(("what", "value"), [(key, shown(value)) for key, value in result.found.items()]))
        if result.error:
            lines += ["", "```", result.error, "```"]
    return "\n".join(lines) + "\n"


def _why_not(part: Part) -> str:
    return f"not run: {part.asked_by} asks for it" if part.asked_by else "not run"


def shown(value: Any) -> str:
    """A found value in a cell of a table."""
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return str(value).replace("|", "\\|")
    if isinstance(value, float):
        return number(value, 4)
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items())
    return "<br>".join(shown(item) for item in value)
