"""What can be known to be wrong before a build that takes minutes: each failure names its remedy."""

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from vexpress_trt.engines.bundle import Bundle, graph_bytes
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.memory import available_memory
from vexpress_trt.engines.trt.flavour import RTX, RTX_TARGETS, TensorRt
from vexpress_trt.engines.trt.foresight import Need
from vexpress_trt.engines.trt.size_flags import smaller

_OLDEST_CAPABILITY = {"tensorrt": (7, 5), RTX: (7, 5)}
# Measured on the full-size FP16 denoiser with TensorRT-RTX for two targets: 2.5 GiB of weights, 12.5 GiB resident.
_MEMORY_PER_WEIGHT_BYTE = 4.7
# A small model's denoiser: 6 MB of weights, 1.0 GiB resident, whatever the sizes.
_BASE_BYTES = 1100 << 20
_PLAN_PER_WEIGHT_BYTE, _PLAN_BASE_BYTES = 1.1, 16 << 20  # a small model's eight engines: 116 MiB for 18 MiB of weights
DEFAULT_WORKSPACE = 8 << 30


def targets_here(tensorrt: TensorRt, gpu_id: int = 0) -> tuple[str, ...]:
    """The compute capability of this machine's GPU, as ("sm89",). Raises UserError where it cannot be built for."""
    status = gpu_status()
    if status.reason:
        ahead = "; --target sm89 builds ahead of time without one" if tensorrt.is_rtx else ""
        raise UserError(f"{tensorrt.backend} builds for the GPU of this machine: {status.reason}{ahead}")
    if not 0 <= gpu_id < len(status.devices):
        raise UserError(f"--gpu_id {gpu_id}: there is no such GPU; the last one is {len(status.devices) - 1}")
    device = status.devices[gpu_id]
    if device.capability < _OLDEST_CAPABILITY[tensorrt.backend]:
        raise UserError(
            f"{device.name} has compute capability {device.capability[0]}.{device.capability[1]}: {tensorrt.backend} "
            f"{tensorrt.version} needs 7.5 (Turing) or newer; use --backend torch with --device cuda"
        )
    name = f"sm{device.capability[0]}{device.capability[1]}"
    if tensorrt.is_rtx and name not in RTX_TARGETS:
        raise UserError(f"{device.name} ({name}): TensorRT-RTX does not support it; use --backend tensorrt")
    driver = int((status.cuda or "0").split(".")[0])
    if driver < tensorrt.cuda_major:
        raise UserError(
            f"{tensorrt.backend} {tensorrt.version} is built for CUDA {tensorrt.cuda_major}, the driver supports "
            f"{status.cuda}: update the driver, or install the package for CUDA {driver}"
        )
    return (name,)


def workspace_for(wanted: int | None, free: int | None) -> int:
    """Bytes of scratch that a builder may try: `wanted`, or 8 GiB, or the `free` memory of the GPU it builds on.

    Raises UserError where more is wanted than the GPU has.
    """
    if wanted is None:
        return DEFAULT_WORKSPACE if free is None else min(DEFAULT_WORKSPACE, free)
    if free is not None and wanted > free:
        raise UserError(
            f"--workspace {wanted / 2**30:g}: the GPU has {free / 2**30:.1f} GiB free: ask for less, or close other "
            "programs on it"
        )
    return wanted


def check_room(bundle: Bundle, precision: str, specs: Sequence[GraphSpec], temporary: Path | None = None) -> None:
    """Refuse to build these graphs where memory or disk will not suffice. Raises UserError with the figures.

    `temporary`: the folder of plans that are thrown away (None: they are for the bundle).
    """
    weights = [graph_bytes(bundle, spec) for spec in specs]
    needed = int(max(weights) * _MEMORY_PER_WEIGHT_BYTE) + _BASE_BYTES
    available = available_memory()
    if needed > available:
        elsewhere = "build on a larger machine and copy the bundle" if temporary is None else "use a larger machine"
        raise UserError(
            f"building {precision} takes {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are free: "
            f"close other programs, or {elsewhere}"
        )
    size = int(sum(weights) * _PLAN_PER_WEIGHT_BYTE) + len(weights) * _PLAN_BASE_BYTES
    folder = temporary or bundle.root
    free = shutil.disk_usage(folder).free
    if size > free:
        elsewhere = "copy the bundle to another disk" if temporary is None else "set TMPDIR to a folder on another disk"
        raise UserError(
            f"the engines take about {size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free at {folder}: make room or "
            f"{elsewhere}"
        )


def check_working_memory(
    graph: str, symbols: Collection[str], need: Need, weights: int, workspace: int, free: int | None
) -> None:
    """Refuse sizes for which the least `need` is more than the workspace, or with the weights more than the GPU has
    `free`. `symbols` are those of the graph's sizes. Raises UserError with the figures."""
    remedies = "".join(f", or {remedy}" for remedy in (need.remedy, smaller(symbols)) if remedy)
    what = f"{graph} needs at least {need.size / 2**30:.1f} GiB of working memory for {need.what}"
    if need.size > workspace:
        raise UserError(
            f"{what}, --workspace allows {workspace / 2**30:g} GiB: raise it to what the GPU can spare{remedies}"
        )
    if free is not None and need.size + weights > free:
        raise UserError(
            f"{what} and {weights / 2**30:.1f} GiB for its weights, the GPU has {free / 2**30:.1f} GiB free: close "
            f"other programs on it{remedies}"
        )
