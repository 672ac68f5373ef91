"""Error answers as Triton's own: it makes the statuses of gRPC and HTTP of their codes.

Triton 2.51 has no code for which HTTP would say 401 or 504.
"""

from typing import Any

import triton_python_backend_utils as utils

from vexpress_trt.serving import protocol

_NAMES = {  # of members of TritonError, which does not exist yet when a model is imported
    protocol.INVALID: "INVALID_ARG",  # 400
    protocol.UNAUTHORIZED: "INVALID_ARG",
    protocol.BUSY: "UNAVAILABLE",  # 503
    protocol.TIMEOUT: "INTERNAL",  # 500
    protocol.FAILED: "INTERNAL",
}


def error_response(text: str) -> Any:
    """An `InferenceResponse` that carries a refusal's text."""
    code = getattr(utils.TritonError, _NAMES[protocol.parse_refusal(text)[0]])
    return utils.InferenceResponse([], utils.TritonError(text, code))
