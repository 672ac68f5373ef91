"""`vexpress export`: checkpoints from a folder or made at random, to a bundle, with a report of what it cost."""

import json
import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path, check_place, temporary_beside, temporary_folder
from vexpress_trt.engines.memory import peak_memory_mib

NEEDED = ("torch", "diffusers", "transformers", "onnxscript", "safetensors")


def run_export(
    bundle: Path,
    *,
    checkpoints: Path | None = None,
    random: str | None = None,
    random_seed: int = 0,
    precisions: tuple[str, ...] = ("fp32", "fp16"),
    image_width: int = 512,
    image_height: int = 512,
    context_frames: int = 24,
    plain: bool = False,
    force: bool = False,
    report: Path | None = None,
) -> None:
    """Export `checkpoints`, or random ones of the size `random`, and print what was made.

    Random checkpoints are kept in `checkpoints` where that is given too. Raises UserError where the export extra is not
    installed, and whatever `load_checkpoints` and `export_bundle` raise.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(
            f"export needs {', '.join(missing)}: install them with `pip install 'vexpress-trt[export]'`, or generate "
            "from a bundle exported elsewhere."
        )
    if report is not None:
        check_place(report)
    from vexpress_trt.export.build_bundle import export_bundle
    from vexpress_trt.export.checkpoints import load_checkpoints
    from vexpress_trt.export.random_weights import write_random_checkpoints

    began = perf_counter()
    with ExitStack() as stack:
        if random is not None:
            if checkpoints is None:
                temporary = stack.enter_context(temporary_beside(Path(temporary_folder(), "vexpress-export")))
                checkpoints = temporary / "model_ckpts"
            write_random_checkpoints(checkpoints, random, random_seed)
        loaded = load_checkpoints(checkpoints)
        result = export_bundle(
            loaded,
            bundle,
            precisions=precisions,
            image_width=image_width,
            image_height=image_height,
            context_frames=context_frames,
            plain=plain,
            force=force,
        )
    seconds = perf_counter() - began
    peak = peak_memory_mib()
    print(f"{bundle}: {result.bundle_bytes / 2**20:.0f} MiB in {seconds:.0f} s, peak memory {peak:.0f} MiB")
    if report is not None:
        document = {
            "command": shlex.join(["vexpress", *sys.argv[1:]]),
            "seconds": round(seconds, 1),
            "peak_memory_mib": round(peak),
            **asdict(result),
        }
        with atomic_path(report) as path:
            path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
