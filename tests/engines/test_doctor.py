"""The report about a machine."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vexpress_trt.engines import doctor as module
from vexpress_trt.engines.doctor import Check, doctor, format_checks
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import Gpu, GpuStatus
from vexpress_trt.engines.selection import BackendStatus


def _named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Packages that are made to be absent."""

    def hide(*names: str) -> None:
        version, spec = module.package_version, module.find_spec
        monkeypatch.setattr(
            module, "package_version", lambda *asked: None if set(asked) & set(names) else version(*asked)
        )
        monkeypatch.setattr(module, "find_spec", lambda name: None if name in names else spec(name))

    return hide


def test_the_report_covers_what_a_run_needs() -> None:
    checks = doctor()
    assert {check.group for check in checks} == {"machine", "software", "media", "backends", "faces"}
    named = _named(checks)
    for name in ["processor", "cores", "memory", "disk", "GPU", "python", "numpy", "native code", "H.264 encoder",
                 "AAC encoder", "openvino", "onnxruntime", "torch-cuda", "auto", "MTCNN", "insightface"]:  # fmt: skip
        assert named[name].detail
    assert len({(check.group, check.name) for check in checks}) == len(checks)


def test_json_and_text_say_the_same() -> None:
    checks = doctor()
    document = json.loads(json.dumps([check.as_dict() for check in checks]))
    text = format_checks(checks)
    for entry in document:
        assert set(entry) == {"group", "name", "state", "detail", "help"}
        assert entry["detail"] in text
        assert entry["help"] in text


def test_a_backend_that_cannot_be_imported_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.importlib.import_module

    def broken(name: str):
        if name == "openvino":
            raise ImportError("libtbb.so.12: cannot open shared object file")
        return real(name)

    monkeypatch.setattr(module.importlib, "import_module", broken)
    check = _named(doctor())["openvino"]
    assert check.group == "backends" and check.state == "problem" and "libtbb.so.12" in check.detail
    assert check.help == "install it anew, with what it lacks"


def test_the_text_marks_problems_and_counts_them() -> None:
    checks = [
        Check("machine", "disk", "ok", "9 GiB"),
        Check("software", "av", "problem", "not installed", "pip install av"),
        Check("software", "torch", "absent", "not installed"),
    ]
    assert format_checks(checks).splitlines() == [
        "machine",
        "  ok disk   9 GiB",
        "",
        "software",
        "  !! av     not installed",
        "            -> pip install av",
        "  -  torch  not installed",
        "",
        "1 problem, marked !!",
    ]
    assert format_checks([checks[0]]).endswith("nothing is wrong")


@pytest.mark.parametrize(
    ("hidden", "name", "state", "said"),
    [
        ("torch", "torch", "absent", "pip install 'vexpress-trt[export]'"),
        ("av", "av", "problem", "pip install av"),
        ("vexpress_trt.runtime._native", "native code", "problem", "pip install --force-reinstall vexpress-trt"),
        ("insightface", "insightface", "absent", r"pip install 'vexpress-trt[face]'"),
    ],
)
def test_what_is_missing_comes_with_the_command_that_installs_it(missing, hidden, name, state, said) -> None:
    missing(hidden)
    found = [check for check in doctor() if check.name == name and check.group in ("software", "faces")]
    assert [check.state for check in found] == [state]
    assert said in found[0].help


def test_missing_detector_files_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FACE_MODELS", ("pnet.onnx", "none.onnx"))
    check = _named(doctor())["MTCNN"]
    assert check.state == "problem"
    assert "none.onnx" in check.detail
    assert "pnet.onnx" not in check.detail


def test_insightface_needs_its_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "package_version", lambda *names: "2.1")
    monkeypatch.setattr(module, "_INSIGHTFACE_FOLDER", tmp_path)
    assert _named(doctor())["insightface"].state == "absent"
    (tmp_path / "det_10g.onnx").touch()
    assert _named(doctor())["insightface"] == Check("faces", "insightface", "ok", f"2.1, 1 models in {tmp_path}")


def test_tensorrt_rtx_builds_ahead_of_time_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, said in (("1.7", True), (None, False)):
        status = BackendStatus("tensorrt-rtx", False, version, (), "no NVIDIA driver", "")
        monkeypatch.setattr(module, "available_backends", lambda status=status: [status])
        assert ("`vexpress build --target`" in _named(doctor())["tensorrt-rtx"].detail) == said


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    status = GpuStatus("13.0", (Gpu(0, "H100", 80 << 30, (9, 0)),), "")
    monkeypatch.setattr(module, "gpu_status", lambda: status)
    check = _named(doctor())["GPU"]
    assert check == Check("machine", "GPU", "ok", "H100, 80 GiB, compute capability 9.0; CUDA 13.0 driver")


def test_a_missing_encoder_is_a_problem() -> None:
    class NoCodecs:
        @staticmethod
        def Codec(name: str, mode: str) -> None:  # noqa: N802
            raise ValueError(name)

    assert module._encoder(NoCodecs, "AAC encoder", "aac", "sound").state == "problem"


def test_no_usable_backend_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise UserError("no backend works here")

    monkeypatch.setattr(module, "choose_backend", refuse)
    assert _named(doctor())["auto"] == Check("backends", "auto", "problem", "no backend works here")


def test_a_check_that_fails_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    checks = doctor()
    assert checks[0] == Check("machine", "machine", "problem", "this check failed: PermissionError: no")
    assert "python" in _named(checks)


def test_torch_on_a_gpu_without_triton_says_what_it_lacks(missing, monkeypatch: pytest.MonkeyPatch) -> None:
    status = BackendStatus("torch-cuda", True, "2.11.0", ("H100",), "", "")
    monkeypatch.setattr(module, "available_backends", lambda: [status])
    missing("triton")
    assert _named(doctor())["torch-cuda"].detail.startswith("2.11.0 on H100, slower than with the denoiser's fused")
    monkeypatch.setattr(module, "package_version", lambda *names: "3.6.0")
    assert _named(doctor())["torch-cuda"].detail == "2.11.0 on H100"
