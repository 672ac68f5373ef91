"""The wrapper around insightface, with a stand-in for the package: its models cannot come with this project."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.faces.insightface_detector import InsightfaceDetector, find_models


class FakeAnalysis:
    """What insightface.app.FaceAnalysis offers, as far as it is used."""

    made: "FakeAnalysis"
    problem: Exception | None = None
    found: tuple[types.SimpleNamespace, ...] = ()

    def __init__(self, **arguments: object) -> None:
        print("find model: det_10g.onnx")
        if self.problem is not None:
            raise self.problem
        self.arguments = arguments
        type(self).made = self

    def prepare(self, **arguments: object) -> None:
        self.prepared = arguments

    def get(self, image: np.ndarray) -> list[types.SimpleNamespace]:
        self.image = image
        return list(self.found)


@pytest.fixture
def analysis(monkeypatch: pytest.MonkeyPatch) -> type[FakeAnalysis]:
    kind = type("Analysis", (FakeAnalysis,), {})
    monkeypatch.setitem(sys.modules, "insightface", types.ModuleType("insightface"))
    monkeypatch.setitem(sys.modules, "insightface.app", types.SimpleNamespace(FaceAnalysis=kind))
    return kind


def found(side: float, score: float, **more: object) -> types.SimpleNamespace:
    points = np.array([[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]], np.float64) * side
    return types.SimpleNamespace(**{"bbox": np.array([0, 0, side, side]), "kps": points, "det_score": score} | more)


def test_the_first_three_of_five_points_are_taken_largest_face_first(analysis: type[FakeAnalysis]) -> None:
    analysis.found = (found(10, 0.9), found(30, 0.8), found(90, 0.9, kps=None))
    large, small = InsightfaceDetector(Path("/models")).detect(np.zeros((8, 8, 3), np.uint8))
    np.testing.assert_array_equal(large.points, np.array([[30, 60], [90, 120], [150, 180]], np.float32))
    np.testing.assert_array_equal(small.box, np.array([0, 0, 10, 10], np.float32))
    assert (large.score, small.score) == (0.8, 0.9)
    assert large.points.dtype == large.box.dtype == np.float32


def test_insightface_gets_bgr(analysis: type[FakeAnalysis]) -> None:
    detector = InsightfaceDetector(Path("/models"))
    detector.detect(np.full((4, 4, 3), [255, 0, 7], np.uint8))
    assert analysis.made.image[0, 0].tolist() == [7, 0, 255]
    assert analysis.made.image.flags.c_contiguous


def test_only_the_detection_model_is_loaded_from_the_named_folder(
    analysis: type[FakeAnalysis], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    InsightfaceDetector(tmp_path)
    assert analysis.made.arguments["allowed_modules"] == ["detection"]
    assert analysis.made.arguments["name"] == str(tmp_path)
    assert analysis.made.prepared["det_size"] == (512, 512)
    assert capsys.readouterr().out == ""


def test_a_folder_without_a_detection_model_is_refused_with_its_name(analysis: type[FakeAnalysis]) -> None:
    analysis.problem = AssertionError()
    with pytest.raises(UserError, match=r"/models holds no face detection model .*det_10g\.onnx"):
        InsightfaceDetector(Path("/models"))


def test_damaged_models_are_refused_in_one_line(analysis: type[FakeAnalysis]) -> None:
    analysis.problem = RuntimeError("invalid protobuf\nand a long tail")
    with pytest.raises(
        UserError, match="could not load its models from /models .RuntimeError: invalid protobuf."
    ) as it:
        InsightfaceDetector(Path("/models"))
    assert "tail" not in str(it.value)


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    with pytest.raises(UserError, match=r"pip install 'vexpress-trt\[face\]'"):
        InsightfaceDetector(Path("/models"))


@pytest.mark.parametrize("layout", [".", "buffalo_l", "models/buffalo_l", "insightface_models/models/buffalo_l"])
def test_models_are_found_in_the_folder_its_root_or_the_checkpoints(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / layout
    folder.mkdir(parents=True, exist_ok=True)
    assert find_models(tmp_path) is None
    (folder / "det_10g.onnx").touch()
    assert find_models(tmp_path) == folder.resolve()


def test_a_missing_folder_holds_no_models(tmp_path: Path) -> None:
    assert find_models(tmp_path / "nowhere") is None
