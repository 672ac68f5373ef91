"""Face detection: three key points per face, by insightface where its models are there, else by the embedded MTCNN."""

from vexpress_trt.runtime.faces.face import Detector, Face
from vexpress_trt.runtime.faces.select import load_detector

__all__ = ["Detector", "Face", "load_detector"]
