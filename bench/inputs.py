"""Random inputs for a graph of any size: what a call costs does not depend on the values."""

from collections.abc import Mapping
from zlib import crc32

import numpy as np

from vexpress_trt.engines.dims import evaluate
from vexpress_trt.engines.dtypes import numpy_dtype
from vexpress_trt.engines.manifest import GraphSpec, ModelConfig, TensorSpec

TIMESTEP = 500.0


def random_inputs(
    spec: GraphSpec, sizes: Mapping[str, int], *, seed: int = 0, given: Mapping[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """One array for each input of a graph whose symbols have these sizes; those in `given` are taken as they are.

    Standard normal values that depend on the tensor's name and the seed only; timesteps are 500 and weights 1.
    """
    given = given or {}
    return {
        tensor.name: given[tensor.name] if tensor.name in given else _values(tensor, sizes, seed)
        for tensor in spec.inputs
    }


def latent_sizes(model: ModelConfig, width: int | None, height: int | None) -> dict[str, int]:
    """{h, w} of the latents of a picture of this size in pixels (None: the bundle's)."""
    factor = model.vae_scale_factor
    return {"h": (height or model.image_height) // factor, "w": (width or model.image_width) // factor}


def _values(tensor: TensorSpec, sizes: Mapping[str, int], seed: int) -> np.ndarray:
    shape = [evaluate(dimension, sizes) for dimension in tensor.shape]
    if tensor.name == "timestep":
        return np.full(shape, TIMESTEP, np.float32)
    if tensor.name.endswith("_weight"):
        return np.ones(shape, np.float32)
    random = np.random.default_rng([seed, crc32(tensor.name.encode())])
    return random.standard_normal(shape, dtype=np.float32).astype(numpy_dtype(tensor.dtype))
