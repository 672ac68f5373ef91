"""The check's results as JSON and Markdown, and the machine they come from."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from vexpress_trt.bench.gpu_check.parts import PartResult, Setting, as_document
from vexpress_trt.bench.machine import describe_machine
from vexpress_trt.bench.report import number, table

_QUERY = "name,driver_version,memory.total,power.limit,clocks.max.sm"


def describe_gpu() -> dict[str, Any]:
    """The machine, its GPU, driver and what CUDA packages there are; nothing is imported that would start the GPU."""
    machine = describe_machine()
    found: dict[str, Any] = {"gpu": "none", **machine}
    if tool := shutil.which("nvidia-smi"):
        asked = [tool, f"--query-gpu={_QUERY}", "--format=csv,noheader"]
        done = subprocess.run(asked, stdout=subprocess.PIPE, text=True, timeout=30, check=False)
        values = [value.strip() for value in done.stdout.strip().split("\n")[0].split(",")]
        found |= dict(zip(("gpu", "driver", "gpu_memory", "power_limit", "clock"), values, strict=False))
    try:
        import torch

        found["torch_cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
    except ImportError:
        pass
    return found


def write_results(results: list[PartResult], machine: dict[str, Any], setting: Setting, folder: Path) -> None:
    """Write gpu_check.json and gpu_check.md."""
    document = as_document(results, machine, setting)
    (folder / "gpu_check.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / "gpu_check.md").write_text(as_markdown(results, machine, setting), encoding="utf-8")


def as_markdown(results: list[PartResult], machine: dict[str, Any], setting: Setting) -> str:
    """One table of parts, and below it what each of them found."""
    about = [str(machine.get(key)) for key in ("gpu", "driver", "torch_cuda", "cudnn") if machine.get(key) is not None]
    torch_version = machine.get("packages", {}).get("torch", "none")
    lines = [
        f"GPU {', '.join(about)}; torch {torch_version}; Python {machine['python']}; {machine['cores']} cores of "
        f"{machine['cpu']}{'; quick: small networks only' if setting.quick else ''}",
        "",
        table(
            ("part", "outcome", "s"),
            [(r.name, "failed" if r.error else "passed", number(r.seconds)) for r in results],
        ),
    ]
    for result in results:
        lines += ["", f"### {result.name}", ""]
        if result.found:
            lines.append(table(("what", "value"), [(key, shown(value)) for key, value in result.found.items()]))
        if result.error:
            lines += ["", "```", result.error, "```"]
    return "\n".join(lines) + "\n"


def shown(value: Any) -> str:
    """A found value in a cell of a table."""
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return str(value)
    if isinstance(value, float):
        return number(value, 4)
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items())
    return "<br>".join(shown(item) for item in value)
