"""What is particular to OpenVINO."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.cpu import Cpu
from vexpress_trt.engines.engine import CancelledError, load_engine
from vexpress_trt.engines.errors import UserError

pytest.importorskip("openvino")

from vexpress_trt.engines import openvino_engine  # noqa: E402


def _load(bundle: Bundle, **settings):
    return load_engine(bundle, "vae_decoder", backend="openvino", precision="fp32", **settings)


def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    automatic = ("CI", "TF_BUILD", "JENKINS_URL")  # where these are set it would not report anyway
    surroundings = {name: value for name, value in os.environ.items() if name not in automatic}
    places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "TMPDIR"), str(tmp_path))
    code = "from vexpress_trt.engines.openvino_engine import _core; _core()"
    subprocess.run([sys.executable, "-c", code], env={**surroundings, **places}, check=True)
    assert not list(tmp_path.iterdir())  # reporting begins with an identifier in the home folder


@pytest.mark.parametrize(("flags", "hint"), [(("amx_tile", "amx_bf16"), "bf16"), (("avx512f",), "f32")])
def test_unasked_it_computes_in_bf16_where_the_processor_does(
    monkeypatch: pytest.MonkeyPatch, flags, hint: str
) -> None:
    monkeypatch.setattr(openvino_engine, "cpu", lambda: Cpu("some", flags))
    assert openvino_engine._settings(None, 3)["INFERENCE_PRECISION_HINT"] == hint


def test_the_settings_reach_the_compiled_model(bundle: Bundle, example: Callable) -> None:
    with _load(bundle, dtype="fp32", threads=1) as engine:
        engine.run(**example().inputs)
        compiled = engine._first_request.get_compiled_model()
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
        assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        assert "LATENCY" in str(compiled.get_property("PERFORMANCE_HINT"))


def test_new_sizes_compile_once_more_and_not_again(bundle: Bundle, example: Callable, monkeypatch) -> None:
    compiled: list[bool] = []
    original = openvino_engine.OpenVinoEngine._compile

    def count(engine, model):
        compiled.append(model.is_dynamic())
        return original(engine, model)

    monkeypatch.setattr(openvino_engine.OpenVinoEngine, "_compile", count)
    with _load(bundle, dtype="fp32") as engine:
        for size in [(2, 3, 5), (2, 3, 5), (1, 3, 5), (4, 7, 2), (2, 3, 5), (3, 3, 3)]:
            engine.run(**example("fp32", *size).inputs)
    assert compiled == [False, True]


def test_a_type_it_does_not_compute_in_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="openvino computes in fp32 or bf16 on a CPU, not in fp16"):
        _load(bundle, dtype="fp16")


def test_an_unreadable_graph_is_named(bundle: Bundle) -> None:
    path = bundle.root / "onnx" / "fp32" / "vae_decoder.onnx"
    path.write_bytes(b"\x08\x0a not a model")
    with pytest.raises(UserError, match="vae_decoder.onnx is not a readable ONNX model"):
        _load(bundle)


def test_inputs_are_used_in_place(bundle: Bundle, example: Callable) -> None:
    case = example()
    with _load(bundle, dtype="fp32") as engine:
        engine.run(**case.inputs)
        case.inputs["feature"] += 1  # no new bind: seen only if the memory is shared
        np.testing.assert_allclose(engine.run()["image"], case.image + 1, atol=2e-6)


def test_a_failed_allocation_is_a_sentence(bundle: Bundle, example: Callable, monkeypatch) -> None:
    def fail(engine, model):
        return engine._attempt("compile", lambda: (_ for _ in ()).throw(RuntimeError("std::bad_alloc")))

    monkeypatch.setattr(openvino_engine.OpenVinoEngine, "_compile", fail)
    with _load(bundle) as engine, pytest.raises(UserError, match="not enough memory for vae_decoder"):
        engine.run(**example().inputs)


def test_what_is_cancelled_while_it_is_compiled_is_not_run(bundle: Bundle, example: Callable, monkeypatch) -> None:
    original = openvino_engine.OpenVinoEngine._compile

    def compile_and_cancel(engine, model):
        engine.cancel()
        return original(engine, model)

    monkeypatch.setattr(openvino_engine.OpenVinoEngine, "_compile", compile_and_cancel)
    monkeypatch.setattr(openvino_engine, "_infer", lambda request: pytest.fail("it ran"))
    with _load(bundle) as engine, pytest.raises(CancelledError, match="vae_decoder"):
        engine.run(**example().inputs)


def test_weights_outside_the_bundle_are_never_read(bundle: Bundle, tmp_path: Path) -> None:
    import onnx

    path = bundle.root / "onnx" / "fp32" / "vae_decoder.onnx"
    model = onnx.load(path, load_external_data=False)
    (tmp_path / "secret").write_bytes(bytes(64))
    model.graph.initializer[0].external_data[0].value = "../../../secret"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="keeps conv.weight in '../../../secret', which the manifest does not list"):
        _load(bundle)
