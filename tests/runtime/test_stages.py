"""A value that is not finite stops a clip in the stage where it appears, with the graph and the place named."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.stages import KeypointFeatures, decode, encode_audio, encode_portrait, project_audio
from vexpress_trt.runtime.summary import Stopwatch

OUTPUTS = {
    "vae_encoder": {"latent": (1, 4, 2, 2)},
    "reference": {"key_00": (1, 2, 4, 8), "value_00": (1, 2, 4, 8)},
    "audio_encoder": {"hidden": (1, 6, 8)},
    "audio_projection": {"tokens": (8, 5, 16)},
    "kps_guider": {"feature": (8, 4, 2, 2)},
    "vae_decoder": {"image": (1, 3, 16, 16)},
}


class Engines:
    """Engines that give zeros, but for one output with one bad value."""

    bundle = SimpleNamespace(manifest=SimpleNamespace(model=SimpleNamespace(latent_scaling=0.18215)))

    def __init__(self, graph: str, output: str, bad: float, dtype: type = np.float32) -> None:
        self._bad = graph, output, bad
        self._dtype = dtype

    @contextmanager
    def use(self, graph: str):
        yield self.engine(graph)

    def engine(self, graph: str) -> SimpleNamespace:
        outputs = {name: np.zeros(shape, self._dtype) for name, shape in OUTPUTS[graph].items()}
        if graph == self._bad[0]:
            outputs[self._bad[1]].flat[-1] = self._bad[2]
        spec = SimpleNamespace(inputs=())
        return SimpleNamespace(spec=spec, bind=lambda **arrays: None, run=lambda **arrays: outputs)


def run(graph: str, engines: Engines) -> list[np.ndarray]:
    """What the stage of a graph gives."""
    match graph:
        case "vae_encoder" | "reference":
            return list(encode_portrait(engines, np.zeros((1, 3, 16, 16), np.float32)).values())
        case "audio_encoder":
            statistics = SimpleNamespace(window_mean=None, window_factor=None)
            return [encode_audio(engines, np.zeros(100, np.float32), statistics)]
        case "audio_projection":
            return [project_audio(engines, lambda start, stop: np.zeros((stop - start, 10, 8)), range(3, 11), np.empty)]
        case "kps_guider":
            points = np.full((20, 3, 2), 5.0)
            features = KeypointFeatures(engines.engine(graph), points, 16, 16, live_frames=8, budget=0)
            out = np.full((8, 4, 2, 2), np.nan, np.float32)
            features.window(5, out)
            return [out]
        case "vae_decoder":
            latents = [(7, np.zeros((4, 2, 2), np.float32))]
            return list(decode(engines, latents, Stopwatch()))
    raise AssertionError(graph)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("graph", "output", "place"),
    [
        ("vae_encoder", "latent", "latent"),
        ("reference", "key_00", "key_00"),
        ("reference", "value_00", "value_00"),
        ("audio_encoder", "hidden", "hidden"),
        ("audio_projection", "tokens", "tokens of frames 3-10"),
        ("kps_guider", "feature", "feature of frames 5-12"),
        ("vae_decoder", "image", "image of frame 7"),
    ],
)
def test_the_stage_names_graph_and_place(graph: str, output: str, place: str, bad: float, dtype: type) -> None:
    with pytest.raises(UserError, match=rf"^{graph} produced non-finite values \({place}\): the weights or"):
        run(graph, Engines(graph, output, bad, dtype))


@pytest.mark.parametrize(
    ("graph", "shapes", "value"),
    [
        ("vae_encoder", [(1, 2, 4, 8)] * 2, 0.0),
        ("reference", [(1, 2, 4, 8)] * 2, 0.0),
        ("audio_encoder", [(6, 8)], 0.0),
        ("audio_projection", [(8, 5, 16)], 0.0),
        ("kps_guider", [(8, 4, 2, 2)], 0.0),
        ("vae_decoder", [(16, 16, 3)], 0.5),
    ],
)
def test_finite_values_pass(graph: str, shapes: list[tuple[int, ...]], value: float) -> None:
    arrays = run(graph, Engines("none", "", 0.0))
    assert [array.shape for array in arrays] == shapes
    assert all((array == value).all() for array in arrays)
