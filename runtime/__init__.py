"""Runtime: portrait, speech and key points in, video frames out. Never imports torch.

    from vexpress_trt.runtime import GenerationRequest, generate

    for frame in generate(GenerationRequest("portrait.jpg", "speech.wav", bundle="tiny.bundle")):
        show(frame.time, frame.image)  # uint8 RGB [H, W, 3]

Names are loaded when first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Frame": "frame",
    "Generation": "generation",
    "GenerationRequest": "request",
    "ProgressEvent": "progress",
    "Summary": "summary",
    "generate": "generation",
    "write_video": "generation",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
