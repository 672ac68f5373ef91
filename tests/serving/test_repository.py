"""Model repositories: readable by Triton's own parser, complete, and served by a Triton that knows nothing of us."""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from served import free_ports

from vexpress_trt.cli import main
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.models.box.box import shipped_bundle
from vexpress_trt.serving.environment import Environment
from vexpress_trt.serving.repository import MODULES


@pytest.fixture(scope="module")
def bundle() -> Path:
    return shipped_bundle()


@pytest.fixture(scope="module")
def repository(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With everything in it, and moved after it was made."""
    made = tmp_path_factory.mktemp("made") / "repository"
    assert main(["export-triton", str(bundle), str(made), "--copy", "--engines", "--backend=onnxruntime"]) == 0
    return made.rename(tmp_path_factory.mktemp("moved") / "repository")


def parsed(path: Path) -> Any:
    model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient")
    from google.protobuf import text_format

    return text_format.Parse(path.read_text(encoding="utf-8"), model_config.ModelConfig())


def test_every_model_is_configured_as_triton_reads_it(repository: Path) -> None:
    configs = {path.parent.name: parsed(path) for path in repository.glob("*/config.pbtxt")}
    assert all(config.name == name for name, config in configs.items())
    assert configs["vexpress"].model_transaction_policy.decoupled
    assert not configs["vexpress_mp4"].model_transaction_policy.decoupled
    assert [tensor.name for tensor in configs["vexpress"].input if tensor.optional] == ["kps", "settings"]


def test_there_is_a_model_for_each_graph_with_the_manifests_tensors(repository: Path, bundle: Path) -> None:
    import onnx

    for graph in Bundle.open(bundle).manifest.graphs:
        folder = repository / f"vexpress_{graph.name}_{graph.precision}"
        config = parsed(folder / "config.pbtxt")
        assert [tensor.name for tensor in config.input] == [tensor.name for tensor in graph.inputs]
        assert [len(tensor.dims) for tensor in config.output] == [len(tensor.shape) for tensor in graph.outputs]
        onnx.load(folder / "1" / "model.onnx")  # its weights as well


def test_folders_of_workers_are_meant_from_here(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--portrait_cache=portraits", "--face_model_dir=faces"]
    assert main(["export-triton", str(bundle), "repository", *flags]) == 0
    (worker,) = json.loads(parsed(Path("repository/vexpress/config.pbtxt")).parameters["vexpress"].string_value)[
        "workers"
    ]
    assert worker["portrait_cache"] == str(tmp_path / "portraits")
    assert worker["face_model_dir"] == str(tmp_path / "faces")


def test_only_plans_of_full_tensorrt_become_models(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vexpress_trt.engines.trt.inventory import EngineRow
    from vexpress_trt.serving import export_repository

    def row(backend: str, problem: str = "") -> EngineRow:
        return EngineRow("manifest.json", "vae_decoder", backend, "11", "fp16", ("sm90",), "static", (), 1, problem)

    rows = [row("tensorrt"), row("tensorrt-rtx"), row("tensorrt", "damaged")]
    monkeypatch.setattr(export_repository, "list_engines", lambda path: rows)
    assert main(["export-triton", str(bundle), str(tmp_path / "repository"), "--engines"]) == 0
    plans = list((tmp_path / "repository").glob("*/1/model.plan"))
    assert len(plans) == 1
    assert parsed(plans[0].parent.parent / "config.pbtxt").platform == "tensorrt_plan"


def test_an_existing_folder_is_replaced_only_when_told(bundle: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "kept").touch()
    assert main(["export-triton", str(bundle), str(tmp_path)]) == 2
    assert "--force" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert main(["export-triton", str(bundle), str(tmp_path), "--force"]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path}\n"
    assert not (tmp_path / "kept").exists()


def test_tritons_side_needs_nothing_but_what_lies_beside_it(repository: Path) -> None:
    version = repository / "vexpress" / "1"
    triton = {"serving.triton_errors", "serving.triton_stream", "serving.triton_mp4"}
    imports = "; ".join(f"import vexpress_trt.{name}" for name in MODULES if name not in triton)
    code = f"import sys; sys.path.insert(0, {str(version)!r}); {imports}; print(vexpress_trt.serving.__file__)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(version))


def test_a_plain_triton_serves_it(repository: Path, serve_environment: Path, tmp_path: Path) -> None:
    environment = Environment(serve_environment)
    ports = free_ports(3)
    command = [
        environment.triton / "bin" / "tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={environment.triton / 'backends'}",
        "--model-control-mode=explicit",  # this Triton has no onnxruntime backend
        "--load-model=vexpress",
        "--load-model=vexpress_mp4",
        *(f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)),
        *(f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")),
        "--log-info=false",
    ]
    with open(tmp_path / "log", "w") as log:
        triton = subprocess.Popen([str(part) for part in command], env=environment.variables(), stderr=log)
    try:
        assert _until_ready(triton, f"http://127.0.0.1:{ports[0]}/v2/models/vexpress/ready"), log.name
    finally:
        triton.terminate()
        assert triton.wait(30) == 0


def _until_ready(triton: subprocess.Popen, url: str) -> bool:
    until = time.monotonic() + 60
    while triton.poll() is None and time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status == 200
        except OSError:
            time.sleep(0.1)
    return False
