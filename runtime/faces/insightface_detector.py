"""The detector that V-Express itself uses: insightface's, where its package and models are installed.

The models may be used for non-commercial research only and are not part of this project.
"""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.faces.face import Detector, Face, by_size_and_score

DEFAULT_MODEL_DIR = Path("~/.insightface/models/buffalo_l")
DETECTION_SIZE = (512, 512)  # what upstream detects at
_LAYOUTS = (".", "buffalo_l", "models/buffalo_l", "insightface_models/models/buffalo_l")


class InsightfaceDetector(Detector):
    """insightface's detection model on onnxruntime; none of its other models is loaded."""

    name = "insightface"

    def __init__(self, model_dir: Path) -> None:
        """`model_dir` holds the model files themselves (see `find_models`).

        Raises UserError where the package is missing or the folder holds no detection model that can be read.
        """
        self._analysis = _load(model_dir)

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces in `image` (uint8 RGB [H, W, 3]), the largest and surest first; empty where there is none."""
        found = self._analysis.get(np.ascontiguousarray(image[:, :, ::-1]))  # insightface takes BGR
        faces = [
            Face(np.asarray(face.kps[:3], np.float32), np.asarray(face.bbox[:4], np.float32), float(face.det_score))
            for face in found
            if face.kps is not None
        ]
        return by_size_and_score(faces)


def find_models(folder: Path) -> Path | None:
    """The folder with insightface's model files in or below `folder`, or None.

    `folder` may be that folder itself, insightface's root, or a folder of checkpoints that `vexpress fetch` has filled.
    """
    for layout in _LAYOUTS:
        place = Path(os.path.expanduser(folder)) / layout
        if os.path.isdir(place) and any(place.glob("*.onnx")):
            return place.resolve()
    return None


def _load(model_dir: Path) -> Any:
    try:
        import onnxruntime
        from insightface.app import FaceAnalysis
    except ImportError as problem:
        raise UserError(
            f"insightface is not installed here ({problem}): install it with `pip install 'vexpress-trt[face]'` or use "
            "--detector mtcnn"
        ) from problem
    usable = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in usable]
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some versions print what they load; stdout is the result's
            # An absolute path as the name makes every version look right there and download nothing.
            analysis = FaceAnalysis(name=str(model_dir), allowed_modules=["detection"], providers=providers)
            analysis.prepare(ctx_id=0, det_size=DETECTION_SIZE)
    except AssertionError as problem:
        raise UserError(
            f"{model_dir} holds no face detection model that insightface knows: put the whole of buffalo_l there "
            "(det_10g.onnx finds the faces) or use --detector mtcnn"
        ) from problem
    except Exception as problem:  # damaged files surface as one of many types of onnxruntime, protobuf and insightface
        raise UserError(
            f"insightface could not load its models from {model_dir} ({_first_line(problem)}): fetch them again or use "
            "--detector mtcnn"
        ) from problem
    return analysis


def _first_line(problem: Exception) -> str:
    lines = str(problem).splitlines()
    return f"{type(problem).__name__}: {lines[0][:120]}" if lines else type(problem).__name__
