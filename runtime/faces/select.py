"""Which face detector to use."""

import importlib.util
import logging
import os
from pathlib import Path

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.faces.face import Detector
from vexpress_trt.runtime.request import DETECTORS


def load_detector(name: str = "auto", face_model_dir: Path | None = None) -> Detector:
    """A face detector: `insightface`, `mtcnn`, or with `auto` the first of the two that is there.

    `face_model_dir` is the folder of insightface's models (default ~/.insightface/models/buffalo_l); with `auto`,
    naming one asks for insightface. Nothing is downloaded. Raises UserError for another name, and where insightface is
    asked for and its package or models are missing or unusable.
    """
    from vexpress_trt.runtime.faces import insightface_detector as insightface

    if name not in DETECTORS:
        raise UserError(f"--detector {name}: unknown, choose one of {', '.join(DETECTORS)}")
    folder = Path(os.path.expanduser(face_model_dir or insightface.DEFAULT_MODEL_DIR))
    models = None if name == "mtcnn" else insightface.find_models(folder)
    if name == "insightface" or (name == "auto" and face_model_dir is not None):
        if models is None:
            state = "holds no model files (*.onnx)" if os.path.isdir(folder) else "does not exist"
            raise UserError(
                f"insightface needs its models, and {folder} {state}: put its buffalo_l models there (non-commercial "
                "research only; `vexpress fetch --checkpoints DIR --parts face` gets them) and name the folder with "
                "--face_model_dir, or use --detector mtcnn"
            )
        return insightface.InsightfaceDetector(models)
    if models is not None:
        if importlib.util.find_spec("insightface") is not None:
            return insightface.InsightfaceDetector(models)
        logging.getLogger("vexpress").info(
            f"insightface's models are in {models} but its package is not installed "
            "(`pip install 'vexpress-trt[face]'`): using the embedded detector"
        )
    from vexpress_trt.runtime.faces.mtcnn import MtcnnDetector

    return MtcnnDetector()
