"""The GPU memory of a clip: what it will take, whether that is allowed, and a limit for what takes it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.dims import evaluate
from vexpress_trt.engines.dtypes import numpy_dtype
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import PRECISION_DTYPE, is_reference_tensor
from vexpress_trt.engines.selection import EngineChoice
from vexpress_trt.runtime.cuda.buffers import arena_bytes, decoder_shapes, feature_shapes, loop_shapes
from vexpress_trt.runtime.cuda.decoder import ROOM
from vexpress_trt.runtime.estimate import LIVE_ACTIVATIONS
from vexpress_trt.runtime.scheduler import Scheduler
from vexpress_trt.runtime.windows import WindowPlan

_CONTEXT = 700 << 20  # CUDA's context, the libraries' kernels and workspaces
# Activations of the image decoder that are alive at once at full resolution, in units of [narrowest channels, H, W].
_LIVE_IMAGES = 6
_NARROWEST = 128
_FACTOR = 1.1  # caching allocators round up


@dataclass(frozen=True)
class GpuNeed:
    """Bytes: engines' weights with the portrait's keys and values, their activations, and our own buffers.

    Buffers are exact, weights as large as their files in the type computed in, activations an estimate that was within
    a tenth of what torch took at full size in FP16.
    """

    weights: int
    activations: int
    buffers: int

    @property
    def total(self) -> int:
        return int(_FACTOR * (self.weights + self.activations)) + self.buffers + _CONTEXT

    def __str__(self) -> str:
        parts = {"weights": self.weights, "activations": self.activations, "buffers": self.buffers, "CUDA": _CONTEXT}
        return ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())


def gpu_need(
    bundle: Bundle,
    choice: EngineChoice,
    *,
    denoisers: Sequence[str],
    plan: WindowPlan,
    scheduler: Scheduler,
    shape: Sequence[int],
    live_windows: int,
    window_batch: int,
    save_gpu_memory: bool,
) -> GpuNeed:
    """The largest stage of a clip, its denoising loop. `denoisers`: the names of the loop's graphs; `shape` [4, h, w].

    The image decoder is beside them unless `save_gpu_memory` has it loaded when they are freed.
    """
    specs = [bundle.graph(name, choice.precision) for name in dict.fromkeys(denoisers)]
    guider, decoder = (bundle.graph(name, choice.precision) for name in ("kps_guider", "vae_decoder"))
    beside = [] if save_gpu_memory else [decoder]
    itemsize = numpy_dtype(PRECISION_DTYPE[choice.dtype]).itemsize
    of_file = itemsize / numpy_dtype(PRECISION_DTYPE[choice.precision]).itemsize
    files = sum(bundle.manifest.files[file].size for spec in (*specs, guider, *beside) for file in spec.files)
    h, w = shape[1:]
    reference = sum(
        prod(evaluate(dimension, {"h": h, "w": w}) for dimension in tensor.shape)
        for tensor in specs[0].inputs
        if is_reference_tensor(tensor.name)
    )
    halves = max(spec.outputs[0].shape[1] for spec in specs)
    width = bundle.manifest.model.feature_channels
    unet = LIVE_ACTIVATIONS * halves * window_batch * plan.window * h * w * width
    images = _LIVE_IMAGES * _NARROWEST * h * w * bundle.manifest.model.vae_scale_factor**2
    arenas = [
        loop_shapes(
            specs,
            plan=plan,
            shape=shape,
            slots=plan.live_frames(min(live_windows + 1, plan.windows)),
            batch=window_batch,
            steps=scheduler.steps,
            history=scheduler.remembers,
        ),
        feature_shapes(guider, shape, 2 * plan.window, np.dtype(np.float64)),
        *(decoder_shapes(spec, shape, plan.window + ROOM) for spec in beside),
    ]
    return GpuNeed(
        weights=int(files * of_file) + len(specs) * reference * itemsize,
        activations=itemsize * (unet + (images if beside else max(0, images - unet))),
        buffers=sum(map(arena_bytes, arenas)),
    )


def require_budget(budget: int, bundle: Bundle, choice: EngineChoice, *, save_gpu_memory: bool, **clip: Any) -> GpuNeed:
    """What a clip needs. Raises UserError where that is more than `budget` bytes; `clip`: as for `gpu_need`."""
    need = gpu_need(bundle, choice, save_gpu_memory=save_gpu_memory, **clip)
    if need.total <= budget:
        return need
    frugal = gpu_need(bundle, choice, save_gpu_memory=True, **clip)
    remedy = "fewer --context_frames, --window_batch 1 or a smaller image lower that"
    if frugal.total <= budget:
        remedy = f"--save_gpu_memory lowers that to {_gib(frugal.total)}"
    raise UserError(
        f"--gpu_memory: this clip needs about {_gib(need.total)} of GPU memory ({need}), and {_gib(budget)} are "
        f"allowed: {remedy}."
    )


@contextmanager
def limited(choice: EngineChoice, budget: int, need: GpuNeed) -> Iterator[None]:
    """Keep engines within what the budget leaves beside our buffers; then a larger one fails, with a sentence.

    Only torch has such a limit, for the whole process, which is lifted at the end: engines of other backends are held
    to the estimate alone.
    """
    if not choice.backend.startswith("torch-cuda"):
        yield
        return
    from vexpress_trt.engines.torch_cuda_engine import limit_memory

    limit_memory(choice.backend, budget - need.buffers - _CONTEXT)
    try:
        yield
    finally:
        limit_memory(choice.backend, None)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
