"""What can be known to be wrong before a build that takes minutes: each failure names its remedy."""

import shutil
from collections.abc import Sequence

import psutil

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.engines.selection import NOT_RTX
from vexpress_trt.engines.trt.flavour import RTX, TensorRt

_OLDEST_CAPABILITY = {"tensorrt": (7, 5), RTX: (7, 5)}
# Measured on the full-size FP16 denoiser with TensorRT-RTX for two targets: 2.5 GiB of weights, 12.5 GiB resident.
_MEMORY_PER_WEIGHT_BYTE = 4.7
_BASE_BYTES = 700 << 20
_PLAN_PER_WEIGHT_BYTE = 1.1


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
    if tensorrt.is_rtx and device.capability in NOT_RTX:
        raise UserError(f"{device.name} ({name}): TensorRT-RTX does not support it; use --backend tensorrt")
    driver = int((status.cuda or "0").split(".")[0])
    if driver < tensorrt.cuda_major:
        raise UserError(
            f"{tensorrt.backend} {tensorrt.version} is built for CUDA {tensorrt.cuda_major}, the driver supports "
            f"{status.cuda}: update the driver, or install the package for CUDA {driver}"
        )
    return (name,)


def check_room(bundle: Bundle, precision: str, specs: Sequence[GraphSpec]) -> None:
    """Refuse a build for which memory or disk will not suffice. Raises UserError with the figures."""
    weights = [graph_bytes(bundle, spec) for spec in specs]
    needed = int(max(weights) * _MEMORY_PER_WEIGHT_BYTE) + _BASE_BYTES
    available = psutil.virtual_memory().available
    if needed > available:
        raise UserError(
            f"building {precision} takes {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are free: "
            "close other programs, or build on a larger machine and copy the bundle"
        )
    size, free = int(sum(weights) * _PLAN_PER_WEIGHT_BYTE), shutil.disk_usage(bundle.root).free
    if size > free:
        raise UserError(
            f"the engines take about {size / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free at {bundle.root}: make "
            "room or copy the bundle to another disk"
        )


def graph_bytes(bundle: Bundle, spec: GraphSpec) -> int:
    """What a graph and its weights take on the disk, which is about what they take in an engine."""
    return sum(bundle.manifest.files[file].size for file in spec.files if not file.startswith("parity/"))
