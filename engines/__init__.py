"""Engines: the bundle format and the backends that run its graphs.

The official onnxruntime reports to its maker what it runs, under an identifier kept in the user's cache folder, unless
the variable below is set before its first import. Whoever wants that sets it to 0.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
