"""Engines: the bundle format and the backends that run its graphs.

The official onnxruntime and OpenVINO report to their makers that and what they run, under an identifier kept in the
user's folders. onnxruntime does not where the variable below is set before its first import; whoever wants it sets it
to 0. OpenVINO sends its reports, over Google Analytics, with each import, in a process forked from a thread. It asks
no variable, but does without the package for it where that cannot be imported.
"""

import os
import sys

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)
