"""Bundles from which one input, or the motion modules, are withheld, so that the whole runtime can be run without them.

What hands an input on is multiplied by weights of zero: tokens, features, and keys and values are then zero, which is
how the unconditional half of guidance, and training, do without them. A motion module adds to its input; with its last
layer at zero it adds nothing.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from vexpress_trt.engines.bundle import Bundle, write_bundle
from vexpress_trt.engines.onnx_files import load_structure


@dataclass(frozen=True)
class Withheld:
    """Which graphs do without, and the names of the weights that are zero there."""

    graphs: tuple[str, ...]
    weights: str


DENOISERS = ("denoiser_guided", "denoiser_single")
AUDIO = Withheld(("audio_projection",), r"norm_out\.(weight|bias)")
KEYPOINTS = Withheld(("kps_guider",), r"conv_out\.(weight|bias)")
PORTRAIT = Withheld(("reference",), r".*\.to_[kv]\.weight")
MOTION = Withheld(DENOISERS, r".*motion_modules\..*\.proj_out\.(weight|bias)")


def without(bundle: Bundle, withheld: Withheld, target: Path) -> Path:
    """A copy of `bundle` at `target` (its other files are linked, not copied); returns `target`.

    Raises ValueError where a graph has no weight of such a name.
    """
    manifest = bundle.manifest
    with write_bundle(target, keep=bundle) as writer:
        for graph in manifest.graphs:
            if graph.name not in withheld.graphs:
                continue
            model = load_structure(bundle, graph)
            found = [tensor for tensor in model.graph.initializer if re.fullmatch(withheld.weights, tensor.name)]
            if not found:
                raise ValueError(f"{graph.path} has no weights named {withheld.weights}")
            for tensor in found:
                _empty(tensor)
            writer.path(graph.path).write_bytes(model.SerializeToString())
        writer.finish(
            producer=manifest.producer,
            model=manifest.model,
            graphs=(),
            scheduler=manifest.scheduler,
            licence=manifest.licence,
            provenance=manifest.provenance,
            networks=manifest.networks,
            random_weights=manifest.random_weights,
        )
    return target


def _empty(tensor) -> None:
    """Make all values of an ONNX tensor zero, in the file itself."""
    import numpy as np
    from onnx import helper, numpy_helper

    zeros = np.zeros(tuple(tensor.dims), helper.tensor_dtype_to_np_dtype(tensor.data_type))
    tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
