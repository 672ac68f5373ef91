"""The GPU memory of a clip: what it will take, whether that is allowed, and a limit for what takes it."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.call_sizes import CHUNK
from vexpress_trt.engines.dims import evaluate
from vexpress_trt.engines.dtypes import numpy_dtype
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.footprint import footprint
from vexpress_trt.engines.manifest import PRECISION_DTYPE, GraphSpec, is_reference_tensor
from vexpress_trt.engines.selection import EngineChoice
from vexpress_trt.runtime.cuda.buffers import arena_bytes, decoder_shapes, feature_shapes, loop_shapes
from vexpress_trt.runtime.cuda.decoder import ROOM
from vexpress_trt.runtime.estimate import LIVE_ACTIVATIONS
from vexpress_trt.runtime.scheduler import Scheduler
from vexpress_trt.runtime.windows import WindowPlan

CONTEXT = 700 << 20  # CUDA's context, the libraries' kernels and workspaces
# Activations of the image decoder that are alive at once at full resolution, in units of [narrowest channels, H, W].
_LIVE_IMAGES = 6
_NARROWEST = 128
_LIVE_GUIDES = 2 * 16  # of the guider, in units of [frames, H, W]: its first layer's 16 channels, in and out
_LIVE_SOUND = 3 * 512 // 5  # of the audio encoder, per sample: three copies of its first 512 filters' every fifth
_FACTOR = 1.1  # caching allocators round up
_SESSION = 256 << 20  # bytes of working memory at least of a session of onnxruntime, with its libraries' workspaces
_STREAMED = 0.9  # of weights that may stream, the share that may stay with the host: some layers lie on the GPU always

log = logging.getLogger("vexpress")


@dataclass(frozen=True)
class EngineNeed:
    """Bytes that an engine of the loop will take: weights, working memory, and arrays that it keeps for the clip.

    Working memory is shared by engines of the same `turn`, which never run at once.
    """

    graph: str
    turn: str
    weights: int
    working: int
    kept: int = 0
    streamable: bool = False


@dataclass(frozen=True)
class GpuNeed:
    """Bytes of the largest stage of a clip: its engines, and our own buffers.

    Buffers are exact, weights are those of plans that were built or as large as their files in the type computed in,
    with what allocators round up. Working memory is what an engine asked for when it was built here, else an estimate
    that was within a tenth of what torch took at full size in FP16, before its denoiser was fused.
    """

    engines: tuple[EngineNeed, ...]
    buffers: int

    @property
    def weights(self) -> int:
        return sum(engine.weights + engine.kept for engine in self.engines)

    @property
    def activations(self) -> int:
        return working_bytes((engine.turn, engine.working) for engine in self.engines)

    @property
    def total(self) -> int:
        return self.weights + self.activations + self.buffers + CONTEXT

    @property
    def streamable(self) -> int:
        """Weights that may stay in the host's memory."""
        return int(_STREAMED * sum(engine.weights for engine in self.engines if engine.streamable))

    @property
    def least(self) -> int:
        """The total when all weights stream that can."""
        return self.total - self.streamable

    def __str__(self) -> str:
        parts = {"weights": self.weights, "activations": self.activations, "buffers": self.buffers, "CUDA": CONTEXT}
        return ", ".join(f"{name} {gib(size)}" for name, size in parts.items())


def working_bytes(parts: Iterator[tuple[str, int]]) -> int:
    """What working memory takes in all; parts are (turn, bytes)."""
    most: dict[str, int] = {}
    for turn, size in parts:
        most[turn] = max(size, most.get(turn, 0))
    return sum(most.values())


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
    samples: int = 0,
) -> GpuNeed:
    """The largest stage of a clip, its denoising loop. `denoisers`: the names of the loop's graphs; `shape` [4, h, w].

    The image decoder is beside them unless `save_gpu_memory` has it loaded when they are freed; so is the audio encoder
    where speech is encoded in parts, of `samples` each.
    """
    specs = [bundle.graph(name, choice.precision) for name in dict.fromkeys(denoisers)]
    guider, decoder = (bundle.graph(name, choice.precision) for name in ("kps_guider", "vae_decoder"))
    itemsize = numpy_dtype(PRECISION_DTYPE[choice.dtype]).itemsize
    h, w = shape[1:]
    pixels = h * w * bundle.manifest.model.vae_scale_factor**2
    frames = window_batch * plan.window
    sessions = choice.backend.startswith("onnxruntime")

    def need(graph: str, turn: str, values: int, kept: int = 0, **sizes: int) -> EngineNeed:
        known = footprint(bundle, choice, graph, sizes)
        weights = known.weights if known.planned else int(_FACTOR * known.weights)
        working = known.working
        if working is None:
            working = max(int(_FACTOR * itemsize * values), _SESSION if sessions else 0)
        return EngineNeed(graph, turn, weights, working, int(_FACTOR * itemsize * kept), known.streamable)

    images = need("vae_decoder", "decoder", _LIVE_IMAGES * _NARROWEST * pixels, N=1, h=h, w=w)
    engines = [need("kps_guider", "guider", CHUNK * _LIVE_GUIDES * pixels, N=CHUNK, h=h, w=w)]
    for spec in specs:
        turn = spec.name if sessions else "denoiser"  # sessions share nothing
        values = LIVE_ACTIVATIONS * spec.outputs[0].shape[1] * frames * h * w * bundle.manifest.model.feature_channels
        sizes = {"B": window_batch, "F": plan.window, "h": h, "w": w}
        engines.append(need(spec.name, turn, values, _reference_values(spec, h, w), **sizes))
    if not save_gpu_memory:
        engines.append(images)
    if samples:
        engines.append(need("audio_encoder", "speech", _LIVE_SOUND * samples, S=samples))
    slots = plan.live_frames(min(live_windows + 1, plan.windows))
    arenas = [
        loop_shapes(
            specs,
            plan=plan,
            shape=shape,
            slots=slots,
            batch=window_batch,
            steps=scheduler.steps,
            history=scheduler.remembers,
        ),
        feature_shapes(guider, shape, 2 * plan.window, np.dtype(np.float64)),
        *(() if save_gpu_memory else [decoder_shapes(decoder, shape, plan.window + ROOM)]),
    ]
    loop = GpuNeed(tuple(engines), sum(map(arena_bytes, arenas)))
    behind = GpuNeed((images,), arena_bytes(decoder_shapes(decoder, shape, ROOM)))
    return max(loop, behind, key=lambda stage: stage.total)


def require_budget(budget: int, bundle: Bundle, choice: EngineChoice, *, save_gpu_memory: bool, **clip: Any) -> GpuNeed:
    """What a clip needs; says so where weights will stream in from the host's memory for it.

    Raises UserError where even then it is more than `budget` bytes; `clip`: as for `gpu_need`.
    """
    need = gpu_need(bundle, choice, save_gpu_memory=save_gpu_memory, **clip)
    if need.total <= budget:
        return need
    frugal = need if save_gpu_memory else gpu_need(bundle, choice, save_gpu_memory=True, **clip)
    if need.least <= budget:
        remedy = f"; --gpu_memory {_whole_gb(need.total)} avoids that"
        if frugal.total <= budget:
            remedy = "; --save_gpu_memory avoids that"
        log.warning(
            "--gpu_memory: by the estimate %s of the weights stay in the host's memory and cross the bus in each call, "
            "which is slower%s",
            gib(need.total - budget),
            remedy,
        )
        return need
    remedy = "fewer --context_frames, --window_batch 1 or a smaller image lower that"
    if frugal.least <= budget:
        remedy = f"--save_gpu_memory lowers that to {gib(frugal.least)}"
    elif choice.planned and not need.streamable:
        remedy += ", and engines of `vexpress build --weight_streaming --force` keep weights in the host's memory"
    streaming = f", {gib(need.least)} with weights streaming in" if need.streamable else ""
    raise UserError(
        f"--gpu_memory: this clip needs about {gib(need.total)} of GPU memory ({need}){streaming}, and {gib(budget)} "
        f"are allowed: {remedy}."
    )


@contextmanager
def limited(choice: EngineChoice, budget: int, need: GpuNeed) -> Iterator[None]:
    """Keep torch within what the budget leaves beside our buffers; then a larger engine fails, with a sentence.

    torch has one limit, for the whole process, which is lifted at the end; engines of other backends have one each, see
    `Shares`.
    """
    if not choice.backend.startswith("torch-cuda"):
        yield
        return
    from vexpress_trt.engines.torch_cuda_engine import limit_memory

    limit_memory(choice.backend, budget - need.buffers - CONTEXT)
    try:
        yield
    finally:
        limit_memory(choice.backend, None)


def gib(size: int) -> str:
    """Bytes for a person."""
    return f"{size / 2**30:.1f} GiB"


def _whole_gb(size: int) -> str:
    return f"{-(-size // 2**30)}GB"


def _reference_values(spec: GraphSpec, h: int, w: int) -> int:
    """How many keys and values of the portrait a denoiser takes."""
    tensors = (tensor for tensor in spec.inputs if is_reference_tensor(tensor.name))
    return sum(prod(evaluate(dimension, {"h": h, "w": w}) for dimension in tensor.shape) for tensor in tensors)
