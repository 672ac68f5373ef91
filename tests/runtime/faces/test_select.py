"""Which detector is used."""

import importlib.machinery
import logging
import sys
import types
from pathlib import Path

import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.faces import load_detector


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


def put_models(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "det_10g.onnx").touch()
    return folder


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the insightface package."""
    package = types.ModuleType("insightface")
    package.__spec__ = importlib.machinery.ModuleSpec("insightface", None)
    analysis = types.SimpleNamespace(prepare=lambda **_: None, get=lambda image: [])
    app = types.SimpleNamespace(FaceAnalysis=lambda **_: analysis)
    monkeypatch.setitem(sys.modules, "insightface", package)
    monkeypatch.setitem(sys.modules, "insightface.app", app)


def uninstall(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "insightface.app", None)


def test_without_models_auto_is_the_embedded_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert load_detector().name == "mtcnn"


def test_with_models_in_the_usual_place_auto_is_insightface(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_models(home / ".insightface" / "models" / "buffalo_l")
    install(monkeypatch)
    assert load_detector().name == "insightface"
    assert load_detector("mtcnn").name == "mtcnn"


def test_with_models_but_no_package_auto_is_the_embedded_detector_and_says_why(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_models(home / ".insightface" / "models" / "buffalo_l")
    uninstall(monkeypatch)
    with caplog.at_level(logging.INFO, "vexpress"):
        assert load_detector().name == "mtcnn"
    assert "package is not installed" in caplog.text


@pytest.mark.parametrize("name", ["auto", "insightface"])
def test_a_named_model_folder_means_insightface(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_models(tmp_path / "checkpoints" / "insightface_models" / "models" / "buffalo_l")
    install(monkeypatch)
    assert load_detector(name, tmp_path / "checkpoints").name == "insightface"


@pytest.mark.parametrize("name", ["auto", "insightface"])
def test_a_missing_or_empty_model_folder_is_refused_with_folder_licence_and_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist.*non-commercial research.*--detector mtcnn"):
        load_detector(name, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no model files"):
        load_detector(name, tmp_path / "empty")


def test_insightface_asked_for_without_a_folder_is_refused_with_the_usual_one(home: Path) -> None:
    with pytest.raises(UserError, match=r"\.insightface.models.buffalo_l does not exist"):
        load_detector("insightface")


def test_an_unknown_detector_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="--detector haar: unknown, choose one of auto, insightface, mtcnn"):
        load_detector("haar")


def test_the_home_of_nobody_is_a_folder_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="~nobody-of-that-name/models does not exist"):
        load_detector("auto", Path("~nobody-of-that-name/models"))
