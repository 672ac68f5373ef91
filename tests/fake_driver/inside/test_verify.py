"""`verify` on TensorRT on a GPU's memory and streams: plans of the moment for every graph of the shipped model."""

import pytest

from vexpress_trt.engines.bundle import ENGINES_FOLDER, Bundle
from vexpress_trt.engines.verify import verify_bundle
from vexpress_trt.models.box.box import shipped_bundle


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt:1"])
def test_every_graph_is_compared_on_either_gpu(backend: str) -> None:
    bundle = Bundle.open(shipped_bundle())
    told: list[str] = []
    results = verify_bundle(bundle, backend, "fp32", tell=told.append)
    assert {result.graph for result in results} == {spec.name for spec in bundle.manifest.graphs}
    assert all(result.passed and result.plan == "momentary" and result.backend == backend for result in results)
    assert len(told) == len(results)
    assert not (bundle.root / ENGINES_FOLDER).exists()
