"""Test vectors: the same inputs everywhere, thinned outputs, and a verdict that tells rounding from a wrong graph."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from vexpress_trt.engines import verify
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.engines.verify import (
    MAX_VALUES,
    difference,
    format_results,
    read_vectors,
    thin,
    vector_inputs,
    vector_path,
    verify_bundle,
    write_vectors,
)

SIZES = {"N": 3, "h": 5, "w": 7}
WEIGHT = (np.arange(16, dtype=np.float32).reshape(4, 4) - 7.5) / 8  # of the small bundle's graph


def spec(dtype: str = "float32") -> GraphSpec:
    inputs = tuple(TensorSpec(name, dtype, ("N", 4, "8*h", "w")) for name in ("latents", "rgb", "timestep"))
    inputs += tuple(TensorSpec(name, "float32", (1,)) for name in ("reference_weight", "audio_weight"))
    return GraphSpec("denoiser_single", "fp32", "a", inputs, (), ("a",))


@pytest.fixture
def checked(bundle: Bundle) -> Bundle:
    """A bundle whose test vectors are right."""
    return store(bundle, 1.0)


def store(bundle: Bundle, factor: float) -> Bundle:
    """Write test vectors: what the graph of the small bundle computes, times `factor`."""
    graph = bundle.graph("vae_decoder", "fp32")
    inputs = vector_inputs(graph, SIZES)
    image = np.einsum("oc,nchw->nohw", WEIGHT, inputs["latents"]) + inputs["feature"]
    path = bundle.path(vector_path("vae_decoder"))
    path.parent.mkdir(exist_ok=True)
    write_vectors(path, SIZES, {"image": image * np.float32(factor)})
    return bundle


def test_inputs_are_the_same_bytes_on_every_machine() -> None:
    inputs = vector_inputs(spec(), SIZES)
    assert inputs["latents"].shape == (3, 4, 40, 7)
    digest = sha256(b"".join(array.tobytes() for array in inputs.values())).hexdigest()
    assert digest == "98dd18bc9f9e943f493f83b7d707d168b267d888b5f6694f2a24cb63d884c01d"


def test_every_precision_gets_exactly_the_same_values() -> None:
    exact, half, brain = (vector_inputs(spec(dtype), SIZES) for dtype in ("float32", "float16", "bfloat16"))
    for name in ("latents", "rgb"):
        assert half[name].dtype == np.float16 and brain[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(half[name].astype(np.float32), exact[name])
        np.testing.assert_array_equal(brain[name].astype(np.float32), exact[name])


def test_inputs_are_what_the_networks_expect() -> None:
    inputs = vector_inputs(spec(), SIZES)
    assert abs(inputs["latents"].mean()) < 0.1 and 1.0 < inputs["latents"].std() < 1.3
    assert inputs["rgb"].min() >= 0 and inputs["rgb"].max() < 1
    assert inputs["timestep"].min() >= 100 and inputs["timestep"].max() < 1000
    np.testing.assert_array_equal(inputs["timestep"], np.round(inputs["timestep"]))
    assert (inputs["reference_weight"], inputs["audio_weight"]) == (np.float32(0.95), np.float32(3.0))


@pytest.mark.parametrize("size", [1, MAX_VALUES, MAX_VALUES + 1, 3 * MAX_VALUES, 100_000])
def test_thinning_keeps_few_values_of_all_parts(size: int) -> None:
    kept = thin(np.arange(size))
    assert kept.dtype == np.float32 and 0 < kept.size <= MAX_VALUES
    assert size <= MAX_VALUES or kept.size > MAX_VALUES / 3
    assert kept[-1] >= size - size / kept.size - 1
    if size > MAX_VALUES:
        assert (kept[1] - kept[0]) % 2 == 1  # never the same column of every row of an even width


def test_the_difference_in_decibels() -> None:
    expected = np.array([1.0, -1.0, 2.0], np.float32)
    assert difference(expected, expected) == (300.0, 0.0)
    snr, error = difference(expected, expected * np.float32(1.01))
    assert snr == pytest.approx(40.0, abs=0.01) and error == pytest.approx(0.02, rel=1e-4)
    assert difference(expected, expected[:2]) == (-math.inf, math.inf)
    assert difference(expected, np.array([1.0, np.nan, 2.0])) == (-math.inf, math.inf)


def test_a_sound_graph_passes_on_every_backend(checked: Bundle) -> None:
    for backend in ("onnxruntime", "openvino"):
        (result,) = verify_bundle(checked, backend, "fp32")
        assert result.passed and result.output == "image" and result.backend == backend
        assert "all 1 graphs agree" in format_results([result])


def test_a_graph_that_is_one_percent_off_does_not_pass_as_fp32(bundle: Bundle) -> None:
    (result,) = verify_bundle(store(bundle, 1.01), "onnxruntime", "fp32")
    assert not result.passed and result.snr_db == pytest.approx(40.0, abs=0.2)
    assert "FAILED" in format_results([result]) and "1 of 1 graphs differ" in format_results([result])


def test_arithmetic_in_bf16_is_judged_as_such(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    store(bundle, 1.01)
    assert verify_bundle(bundle, "openvino", "fp32", dtype="bf16")[0].passed
    assert not verify_bundle(bundle, "openvino", "fp32", dtype="fp32")[0].passed
    with_tiles = replace(verify.cpu(), flags=("amx_tile", "amx_bf16"))
    monkeypatch.setattr(verify, "cpu", lambda: with_tiles)  # where it would choose bf16 by itself
    assert verify_bundle(bundle, "openvino", "fp32")[0].passed


def test_all_precisions_that_the_backend_runs(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = store(make_bundle(tmp_path / "three.bundle", ("fp32", "fp16", "bf16")), 1.0)
    seen = []
    verify_bundle(bundle.root, "onnxruntime", report=lambda result: seen.append(result.precision))
    assert seen == ["fp32", "fp16"]
    assert [result.precision for result in verify_bundle(bundle, "openvino")] == ["fp32", "fp16", "bf16"]


def test_test_vectors_are_read_once_for_all_precisions(
    make_bundle: Callable[..., Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = store(make_bundle(tmp_path / "two.bundle", ("fp32", "fp16")), 1.0)
    reads: list[Path] = []
    monkeypatch.setattr(verify, "read_vectors", lambda path: reads.append(path) or read_vectors(path))
    assert len(verify_bundle(bundle, "onnxruntime")) == 2
    assert reads == [bundle.path(vector_path("vae_decoder"))]


def test_results_are_json_even_when_nothing_is_finite(bundle: Bundle) -> None:
    store(bundle, 1.0)
    (result,) = verify_bundle(bundle, "onnxruntime", "fp32")
    document = json.loads(json.dumps(replace(result, snr_db=-math.inf, max_abs=math.inf).as_dict(), allow_nan=False))
    assert document["snr_db"] is None and document["passed"] is False


def test_missing_and_damaged_vectors_are_sentences(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vae_decoder.npz is missing"):
        verify_bundle(bundle, "onnxruntime", "fp32")
    damaged = tmp_path / "damaged.npz"
    for content in (b"", b"PK\x03\x04 no", b"\x80\x04pickle"):
        damaged.write_bytes(content)
        with pytest.raises(UserError, match="holds no test vectors"):
            read_vectors(damaged)
