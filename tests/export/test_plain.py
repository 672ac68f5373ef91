"""The graphs with the exact savings compute what the plain ones do, on every engine."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from vexpress_trt import cli  # noqa: E402
from vexpress_trt.engines.bundle import Bundle  # noqa: E402
from vexpress_trt.engines.engine import load_engine  # noqa: E402
from vexpress_trt.engines.errors import UserError  # noqa: E402
from vexpress_trt.engines.verify import vector_inputs  # noqa: E402
from vexpress_trt.export import build_bundle  # noqa: E402
from vexpress_trt.export.build_bundle import export_bundle  # noqa: E402
from vexpress_trt.export.checkpoints import load_checkpoints  # noqa: E402
from vexpress_trt.export.graphs import graphs  # noqa: E402

DENOISERS = ("denoiser_guided", "denoiser_single")
SIZES = {"B": 2, "F": 3, "h": 9, "w": 13}


@pytest.fixture(scope="module")
def only_unets() -> Iterator[None]:
    """What differs between the two forms: the reference and the denoisers."""
    names = ("reference", *DENOISERS)
    with pytest.MonkeyPatch.context() as patch:
        chosen = lambda c, **form: tuple(graph for graph in graphs(c, **form) if graph.name in names)  # noqa: E731
        patch.setattr(build_bundle, "graphs", chosen)
        yield


@pytest.fixture(scope="module")
def plain(
    other_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory, only_unets: None, one_thread: None
) -> Bundle:
    target = tmp_path_factory.mktemp("plain") / "plain.bundle"
    export_bundle(
        load_checkpoints(other_checkpoints), target, precisions=["fp32"], image_width=104, image_height=72,
        context_frames=8, plain=True,
    )  # fmt: skip
    return Bundle.open(target)


def _prediction(bundle: Bundle, graph: str, backend: str, weights: tuple[float, float]) -> np.ndarray:
    latent = np.random.default_rng(0).standard_normal((1, 4, SIZES["h"], SIZES["w"]), np.float32)
    engine = {"backend": backend, "precision": "fp32", "dtype": "fp32", "threads": 1}
    with load_engine(bundle, "reference", **engine) as reference:
        portrait = {name: array.copy() for name, array in reference.run(latent=latent).items()}
    with load_engine(bundle, graph, **engine) as denoiser:
        inputs = vector_inputs(denoiser.spec, SIZES) | portrait
        inputs |= {"reference_weight": np.float32([weights[0]]), "audio_weight": np.float32([weights[1]])}
        return denoiser.run(**inputs)["prediction"].copy()


@pytest.mark.parametrize("weights", [(0.95, 3.0), (1.0, 1.0), (0.5, 0.0)], ids=str)
@pytest.mark.parametrize("graph", DENOISERS)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_the_savings_are_exact(
    backend: str, graph: str, weights: tuple[float, float], other_bundle: Path, plain: Bundle
) -> None:
    exact = _prediction(Bundle.open(other_bundle), graph, backend, weights)
    np.testing.assert_allclose(exact, _prediction(plain, graph, backend, weights), rtol=1e-4, atol=2e-5)


def test_a_plain_bundle_says_so_and_its_denoisers_take_the_references_taps(plain: Bundle) -> None:
    assert plain.manifest.provenance["form"] == "plain"
    taps = [tensor for tensor in plain.graph("denoiser_guided", "fp32").inputs if tensor.name.startswith("tap_")]
    assert taps == list(plain.graph("reference", "fp32").outputs)


def test_the_two_forms_do_not_mix_in_one_bundle(plain: Bundle, other_checkpoints: Path, only_unets: None) -> None:
    with pytest.raises(UserError, match="another form"):
        export_bundle(
            load_checkpoints(other_checkpoints), plain.root, precisions=["fp16"], image_width=104, image_height=72,
            context_frames=8,
        )  # fmt: skip


def test_the_command_line_exports_either_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []
    monkeypatch.setattr("vexpress_trt.export.command.run_export", lambda bundle, **given: asked.append(given["plain"]))
    for flags in ([], ["--plain"]):
        assert cli.main(["export", "--random", "tiny", "--bundle", str(tmp_path / "b"), *flags]) == 0
    assert asked == [False, True]
