"""What every engine promises, on each backend that is installed."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.engines import selection
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.engine import CancelledError, Engine, load_engine, out_of_memory
from vexpress_trt.engines.errors import UserError

BACKENDS = ["onnxruntime", "openvino"]
TOLERANCE = {"fp32": 2e-6, "fp16": 4e-3, "bf16": 4e-2}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture
def engine(bundle: Bundle, backend: str) -> Engine:
    with load_engine(bundle, "vae_decoder", backend=backend, precision="fp32", dtype="fp32", threads=1) as engine:
        yield engine


@pytest.mark.parametrize(
    ("backend", "precision", "dtype"),
    [
        ("onnxruntime", "fp32", None),
        ("onnxruntime", "fp16", None),
        ("openvino", "fp32", "fp32"),
        ("openvino", "fp32", "bf16"),
        ("openvino", "fp16", "fp32"),
        ("openvino", "fp16", "bf16"),
        ("openvino", "bf16", "fp32"),
        ("openvino", "bf16", "bf16"),
    ],
)
def test_a_graph_gives_its_output_in_its_own_type(
    make_bundle: Callable, example: Callable, tmp_path: Path, backend: str, precision: str, dtype: str | None
) -> None:
    pytest.importorskip(backend)
    bundle, case = make_bundle(tmp_path / "x", [precision]), example(precision)
    with load_engine(bundle, "vae_decoder", backend=backend, precision=precision, dtype=dtype) as engine:
        image = engine.run(**case.inputs)["image"]
        assert image.dtype.name == engine.spec.outputs[0].dtype
        atol = max(TOLERANCE[precision], TOLERANCE[dtype or precision])
        np.testing.assert_allclose(image.astype(np.float32), case.image, atol=atol, rtol=atol)


def test_sizes_may_change_between_runs(engine: Engine, example: Callable) -> None:
    for size in [(2, 3, 5), (1, 4, 4), (2, 3, 5), (5, 1, 1)]:
        case = example("fp32", *size)
        np.testing.assert_allclose(engine.run(**case.inputs)["image"], case.image, atol=2e-6)


def test_a_bound_array_stays_bound_and_another_takes_its_place(engine: Engine, example: Callable) -> None:
    case = example()
    engine.bind(feature=case.inputs["feature"])
    for factor in (1, 2):
        image = engine.run(latents=case.inputs["latents"] * np.float32(factor))["image"]
        expected = factor * (case.image - case.inputs["feature"]) + case.inputs["feature"]
        np.testing.assert_allclose(image, expected, atol=2e-6)
    engine.bind(feature=np.zeros_like(case.inputs["feature"]))
    image = engine.run(latents=case.inputs["latents"])["image"]
    np.testing.assert_allclose(image, case.image - case.inputs["feature"], atol=2e-6)


def test_bound_arrays_are_kept_alive(engine: Engine, example: Callable) -> None:
    case = example("fp32", 4, 32, 32)
    engine.bind(**{name: array.copy() for name, array in case.inputs.items()})
    gc.collect()
    noise = [np.full_like(case.inputs["latents"], 9) for _ in range(8)]  # would take the place of what was freed
    np.testing.assert_allclose(engine.run()["image"], case.image, atol=2e-6)
    assert len(noise) == 8


@pytest.mark.parametrize("kind", ["read-only", "strided", "byte-swapped order of axes"])
def test_any_array_of_the_right_type_serves(engine: Engine, example: Callable, kind: str) -> None:
    case = example("fp32", 4, 32, 32)
    inputs = {name: array.copy() for name, array in case.inputs.items()}
    if kind == "read-only":
        for array in inputs.values():
            array.flags.writeable = False
    elif kind == "strided":
        inputs = {name: np.repeat(array, 2, axis=3)[..., ::2] for name, array in inputs.items()}
    else:
        inputs = {name: np.asfortranarray(array) for name, array in inputs.items()}
    engine.bind(**inputs)
    del inputs
    noise = [np.full_like(case.inputs["latents"], 9) for _ in range(8)]
    np.testing.assert_allclose(engine.run()["image"], case.image, atol=2e-6)
    assert len(noise) == 8


def test_outputs_keep_their_values_until_the_next_run(engine: Engine, example: Callable) -> None:
    case = example()
    image = engine.run(**case.inputs)["image"]
    engine.bind(latents=case.inputs["latents"] * 2)
    np.testing.assert_allclose(image, case.image, atol=2e-6)


def test_wrong_inputs_are_named(engine: Engine, example: Callable) -> None:
    latents = example().inputs["latents"]
    for arrays, said in [
        ({"colour": latents}, "no input 'colour'; inputs are latents, feature"),
        ({"latents": latents.tolist()}, "latents is a list, not a NumPy array"),
        ({"latents": latents.astype(np.float64)}, "latents has dtype float64, expected float32"),
        ({"latents": latents[0]}, r"latents has shape \[4, 3, 5\], expected \[N, 4, h, w\]"),
    ]:
        with pytest.raises(ValueError, match=f"vae_decoder: {said}"):
            engine.bind(**arrays)
    with pytest.raises(ValueError, match="inputs not bound: feature"):
        engine.run(latents=latents)
    with pytest.raises(ValueError, match="vae_decoder: feature has size 4 on axis 3, expected 5"):
        engine.run(latents=latents, feature=latents[..., :4])


def test_a_refused_bind_changes_nothing(engine: Engine, example: Callable) -> None:
    case = example()
    engine.bind(**case.inputs)
    with pytest.raises(ValueError, match="feature has dtype"):
        engine.bind(latents=case.inputs["latents"] * 2, feature=case.inputs["feature"].astype(np.float64))
    np.testing.assert_allclose(engine.run()["image"], case.image, atol=2e-6)


def test_a_closed_engine_says_so(engine: Engine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(ValueError, match="vae_decoder: this engine is closed"):
        engine.run()


def test_a_bundle_without_the_precision_says_how_to_add_it(bundle: Bundle, backend: str) -> None:
    with pytest.raises(UserError, match="add it with `vexpress export .*--precision fp16 --image_width 64 .*`"):
        load_engine(bundle, "vae_decoder", backend=backend, precision="fp16")


@pytest.mark.parametrize(
    ("problem", "is_memory"),
    [
        (MemoryError(), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("[ONNXRuntimeError] : Failed to allocate memory for requested buffer of size 9"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_every_backends_failed_allocation_is_recognised(problem: Exception, is_memory: bool) -> None:
    sentence = out_of_memory(problem, "reference")
    assert (sentence is not None) is is_memory
    assert not is_memory or "not enough memory for reference" in str(sentence)


def test_a_backend_that_cannot_be_imported_is_one_sentence(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Engine):
        def __new__(cls, *given, **named) -> None:
            raise ImportError("libx.so: cannot open shared object file")

    monkeypatch.setattr(selection, "engine_class", lambda name: Broken)
    with pytest.raises(UserError, match="the backend onnxruntime cannot be imported here .libx.so.*choose another"):
        load_engine(bundle, "vae_decoder", backend="onnxruntime")


def test_a_cancelled_engine_runs_no_more(engine: Engine, example: Callable) -> None:
    case = example("fp32", 2, 3, 5)
    engine.run(**case.inputs)
    engine.cancel()
    with pytest.raises(CancelledError, match="vae_decoder"):
        engine.run(**case.inputs)
