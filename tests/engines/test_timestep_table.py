"""Timesteps in bf16: as exact as everything else, however late the step."""

from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.engine import load_engine
from vexpress_trt.engines.timestep_table import tabulate_timestep
from vexpress_trt.engines.verify import difference, read_vectors, vector_inputs, vector_path

openvino = pytest.importorskip("openvino")
from openvino import opset13 as ops  # noqa: E402

TIMESTEPS = 1000
EIGHT_BITS_DB = 35.0  # rounding to bf16 alone leaves 40 dB on these networks, an angle off by a radian under 30


def _embedding_times_identity(kind: str = "f32") -> "openvino.Model":
    """Sine and cosine of a timestep at two frequencies, of this type, and a matrix product that changes nothing."""
    timestep = ops.parameter([-1], np.float32, "timestep")
    timestep.output(0).set_names({"timestep"})
    frequencies = ops.constant(np.array([[1.0, 0.37]], np.float32))
    angles = ops.multiply(ops.unsqueeze(timestep, ops.constant(np.int32(1))), frequencies)
    embedding = ops.concat([ops.cos(angles), ops.sin(angles)], 1)
    identity = ops.convert(ops.constant(np.eye(4, dtype=np.float32)), kind)
    product = ops.matmul(ops.convert(embedding, kind), identity, False, False)
    return openvino.Model([ops.convert(product, "f32")], [timestep])


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_the_table_holds_what_a_graph_of_any_type_computed(kind: str) -> None:
    core, model = openvino.Core(), _embedding_times_identity(kind)
    plain = core.compile_model(model.clone(), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert tabulate_timestep(core, model, TIMESTEPS)
    tabulated = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    steps = np.array([999, 0, 865, 1], np.int32)
    np.testing.assert_array_equal(tabulated([steps])[0], plain([steps.astype(np.float32)])[0])


def test_a_model_without_timestep_stays_as_it_is() -> None:
    given = ops.parameter([1, 2], np.float32, "sample")
    model = openvino.Model([ops.relu(given)], [given])
    assert not tabulate_timestep(openvino.Core(), model, TIMESTEPS)
    assert [node.get_type_name() for node in model.get_ordered_ops()] == ["Parameter", "Relu", "Result"]


@pytest.mark.parametrize("step", [999.0, 865.0, 3.0])
def test_a_denoiser_in_bf16_hears_the_step_it_is_told(other_bundle: Path, step: float) -> None:
    bundle = Bundle.open(other_bundle)
    predictions = []
    for dtype in ("fp32", "bf16"):
        with load_engine(bundle, "denoiser_single", backend="openvino", precision="fp32", dtype=dtype) as engine:
            sizes, _ = read_vectors(bundle.path(vector_path("denoiser_single")))
            inputs = vector_inputs(engine.spec, sizes)
            inputs["timestep"] = np.full_like(inputs["timestep"], step)
            predictions.append(engine.run(**inputs)["prediction"].copy())
    assert difference(*predictions)[0] > EIGHT_BITS_DB


@pytest.mark.parametrize("step", [0.5, -1.0, 1000.0, float("nan")])
def test_a_timestep_that_is_in_no_table_is_refused(other_bundle: Path, step: float) -> None:
    bundle = Bundle.open(other_bundle)
    with load_engine(bundle, "denoiser_single", backend="openvino", precision="fp32", dtype="bf16") as engine:
        sizes, _ = read_vectors(bundle.path(vector_path("denoiser_single")))
        inputs = vector_inputs(engine.spec, sizes)
        inputs["timestep"] = np.full_like(inputs["timestep"], step)
        with pytest.raises(ValueError, match="timestep must be whole and from 0 to 999 in bf16"):
            engine.run(**inputs)
