"""The buffers of a clip on a device: their shapes follow from the manifest and the request, nothing need be loaded."""

import math
from collections.abc import Sequence

import numpy as np

from vexpress_trt.engines.call_sizes import CHUNK
from vexpress_trt.engines.dims import evaluate
from vexpress_trt.engines.dtypes import numpy_dtype
from vexpress_trt.engines.manifest import GraphSpec
from vexpress_trt.runtime.cuda.device import ALIGNMENT, Shapes
from vexpress_trt.runtime.windows import WindowPlan

PIECE = 256  # batches whose tables are brought to the device at once
IMAGES = 3  # a frame and its neighbours in time

_FLOAT32, _INT32, _UINT8 = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.uint8)


def call_shapes(denoiser: GraphSpec, plan: WindowPlan, shape: Sequence[int], batch: int) -> Shapes:
    """The denoiser's inputs that change from call to call; `shape` [4, h, w] is that of a latent."""
    sizes = {"B": batch, "F": plan.window, "h": shape[1], "w": shape[2]}
    return {
        tensor.name: (tuple(sizes.get(d, d) for d in tensor.shape), numpy_dtype(tensor.dtype))
        for tensor in denoiser.inputs
        if tensor.name in ("latents", "timestep", "tokens", "kps_feature")
    }


def ring_shapes(denoiser: GraphSpec, plan: WindowPlan, shape: Sequence[int], slots: int) -> Shapes:
    """What frames in progress start from, a row for each of `slots` frames and a spare one."""
    call = call_shapes(denoiser, plan, shape, 1)
    return {
        "latents": ((slots + 1, *shape), _FLOAT32),
        **{name: ((slots + 1, *call[name][0][2:]), call[name][1]) for name in ("tokens", "kps_feature")},
    }


def table_shapes(plan: WindowPlan, batch: int) -> Shapes:
    """Two pieces of the schedule, see `Batch`."""
    return {
        "slots": ((2 * PIECE, batch * plan.window), _INT32),
        "places": ((2 * PIECE * batch, plan.window, 4), _INT32),
        "weights": ((2 * PIECE * batch, 6), _FLOAT32),
        "steps": ((2 * PIECE, batch), _INT32),
    }


def loop_shapes(
    denoisers: Sequence[GraphSpec],
    *,
    plan: WindowPlan,
    shape: Sequence[int],
    slots: int,
    batch: int,
    steps: int,
    history: bool,
) -> Shapes:
    """Everything the loop has on the device; `history`: whether the solver remembers earlier predictions."""
    size = math.prod(shape)
    halves = max(spec.outputs[0].shape[1] for spec in denoisers)
    (prediction,) = {spec.outputs[0].dtype for spec in denoisers}
    rings = ring_shapes(denoisers[0], plan, shape, slots)
    return {
        **{f"ring {name}": entry for name, entry in rings.items()},
        "pending": ((slots + 1, plan.reach + 1, size), _FLOAT32),
        **({"history": ((slots + 1, size), _FLOAT32)} if history else {}),
        **table_shapes(plan, batch),
        **call_shapes(denoisers[0], plan, shape, batch),
        "timesteps": ((steps,), _FLOAT32),
        "prediction": ((batch, halves, plan.window, *shape), numpy_dtype(prediction)),
        "batch cursor": ((1,), _INT32),
        "call cursor": ((1,), _INT32),
        "status": ((1,), _INT32),
    }


def feature_shapes(guider: GraphSpec, shape: Sequence[int], rows: int, points: np.dtype) -> Shapes:
    """Key points of `rows` frames, and the guide images and features of CHUNK frames."""
    sizes = {"N": CHUNK, "h": shape[1], "w": shape[2]}
    return {
        "points": ((rows, 3, 2), points),
        "rgb": (_evaluated(guider.inputs[0].shape, sizes), numpy_dtype(guider.inputs[0].dtype)),
        "feature": (_evaluated(guider.outputs[0].shape, sizes), numpy_dtype(guider.outputs[0].dtype)),
    }


def decoder_shapes(decoder: GraphSpec, shape: Sequence[int], room: int) -> Shapes:
    """One decoded image, and `room` latents and frames on their way in and out."""
    sizes = {"N": 1, "h": shape[1], "w": shape[2]}
    image = _evaluated(decoder.outputs[0].shape, sizes)
    frame = (*image[2:], 3)
    return {
        "waiting": ((room, *shape), _FLOAT32),
        "latents": ((1, *shape), _FLOAT32),
        "image": (image, numpy_dtype(decoder.outputs[0].dtype)),
        "rgb": ((IMAGES, *frame), _UINT8),
        "filtered": ((room, *frame), _UINT8),
        "status": ((room, 1), _INT32),
    }


def arena_bytes(shapes: Shapes) -> int:
    """What an arena of these buffers takes."""
    sizes = (math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


def _evaluated(dimensions: Sequence[int | str], sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(dimension, sizes) for dimension in dimensions)
