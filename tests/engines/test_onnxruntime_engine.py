"""What is particular to onnxruntime."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.engine import load_engine
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec

pytest.importorskip("onnxruntime")


def _load(bundle: Bundle, precision: str = "fp32", **settings):
    return load_engine(bundle, "vae_decoder", backend="onnxruntime", precision=precision, **settings)


def test_onnxruntime_reports_to_nobody(tmp_path: Path) -> None:
    places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "TMPDIR"), str(tmp_path))
    surroundings = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    code = "from vexpress_trt.runtime.faces.mtcnn import MtcnnDetector; MtcnnDetector()"
    subprocess.run([sys.executable, "-c", code], env={**surroundings, **places}, check=True)
    assert not list(tmp_path.iterdir())  # reporting begins with an identifier in the cache folder


def test_bf16_is_refused_with_what_runs_it(make_bundle: Callable, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "x", ["bf16"])
    with pytest.raises(UserError, match="cannot run vae_decoder in bf16 on a CPU: choose fp32, or the openvino"):
        _load(bundle, "bf16")


def test_another_type_than_the_graphs_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="computes in the graph's own precision, fp32, not in bf16"):
        _load(bundle, dtype="bf16")
    _load(bundle, dtype="fp32").close()


def test_fp16_is_advised_against_once(make_bundle: Callable, tmp_path: Path, caplog) -> None:
    bundle = make_bundle(tmp_path / "x", ["fp16"])
    logging.getLogger("vexpress").propagate = True
    with caplog.at_level("WARNING"):
        for _ in range(2):
            _load(bundle, "fp16").close()
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "onnxruntime is slower in fp16 than in fp32 on a CPU; export fp32 as well"
    ]


def test_threads_that_wait_sleep(bundle: Bundle) -> None:
    with _load(bundle) as engine:
        options = engine._session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_inputs_and_outputs_are_used_in_place(bundle: Bundle, example: Callable) -> None:
    case = example()
    with _load(bundle) as engine:
        first = engine.run(**case.inputs)["image"]
        case.inputs["feature"] += 1
        assert engine.run()["image"] is first
        np.testing.assert_allclose(first, case.image + 1, atol=2e-6)


def test_an_output_whose_size_no_symbol_gives_is_allocated_by_the_run(
    bundle: Bundle, example: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = example()
    with _load(bundle) as engine:
        monkeypatch.setattr(engine, "output_shape", lambda tensor, sizes: None)
        np.testing.assert_allclose(engine.run(**case.inputs)["image"], case.image, atol=2e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.write_bytes(b"\x08\x0a not a model"), "is not a readable ONNX model"),
        (lambda path: path.with_suffix(".data").write_bytes(b""), "cannot load .*vae_decoder.onnx"),
    ],
)
def test_a_graph_that_does_not_load_is_named(bundle: Bundle, change: Callable, said: str) -> None:
    change(bundle.root / "onnx" / "fp32" / "vae_decoder.onnx")
    with pytest.raises(UserError, match=said):
        _load(bundle)


def test_a_graph_that_is_not_the_manifests_is_named(bundle: Bundle) -> None:
    from vexpress_trt.engines.onnxruntime_engine import OnnxRuntimeEngine

    spec = bundle.graph("vae_decoder", "fp32")
    other = GraphSpec(spec.name, "fp32", spec.path, spec.inputs[:1], spec.outputs, spec.files)
    with pytest.raises(UserError, match=r"disagree about the input names \(feature\)"):
        OnnxRuntimeEngine(bundle, other)
