"""`verify --bisect` inside TensorRT on a GPU's memory and streams: a plan of the moment is built, run and gone."""

import fake_tensorrt
import pytest

from vexpress_trt.engines.bisect import bisect
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.inside import Side
from vexpress_trt.models.box.box import shipped_bundle

REFERENCE = Side("onnxruntime", "fp32")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many outputs every plan has."""
    monkeypatch.setattr(fake_tensorrt.Builder, "built", [])
    return fake_tensorrt.Builder.built


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt:1"])
def test_what_a_builder_gets_wrong_is_named_on_either_gpu(backend: str, built: list[int], monkeypatch) -> None:
    monkeypatch.setattr(fake_tensorrt.Builder, "miscompiled", {"Sigmoid": "HardSigmoid"})
    bundle = Bundle.open(shipped_bundle())
    (result,) = bisect(bundle, Side(backend, "fp32"), REFERENCE, graphs=["kps_guider"], threads=1, chunk_bytes=200_000)
    assert not result.agrees and result.operator == "Sigmoid"
    assert result.tensor_snr_db < 40 < 80 < result.before_db
    assert len(built) > 2 and built[0] == 1 and min(built[1:]) > 1


def test_where_nothing_is_wrong_one_plan_is_built(built: list[int]) -> None:
    bundle = Bundle.open(shipped_bundle())
    (result,) = bisect(bundle, Side("tensorrt", "fp32"), REFERENCE, graphs=["kps_guider"], threads=1)
    assert result.agrees and built == [1]
