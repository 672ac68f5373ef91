"""The model that answers with the finished MP4: one answer for each request, so that plain HTTP can carry it.

It asks the streaming model for chunks and puts them together; queue, workers and limits are that model's.
"""

import json
import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as utils

from vexpress_trt.serving import protocol
from vexpress_trt.serving.triton_errors import error_response

_FINAL = utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            arguments = (sender, request.inputs(), json.loads(request.parameters() or "{}"))
            threading.Thread(target=_answer, args=arguments, daemon=True).start()


def _answer(sender: Any, inputs: list[Any], parameters: dict[str, Any]) -> None:
    try:
        response = utils.InferenceResponse(_video(inputs, parameters))
    except _Refused as problem:
        response = error_response(str(problem))
    except Exception as problem:
        text = protocol.refusal(protocol.FAILED, f"internal error ({type(problem).__name__}).")
        response = error_response(text)
    sender.send(response, flags=_FINAL)


class _Refused(Exception):
    """The error text of the streaming model, or of Triton."""


def _video(inputs: list[Any], parameters: dict[str, Any]) -> list[Any]:
    request = utils.InferenceRequest(
        model_name=protocol.STREAM_MODEL,
        requested_output_names=[],
        inputs=[*(tensor for tensor in inputs if tensor.name() != protocol.SETTINGS), _mp4_settings(inputs)],
        parameters={**parameters, protocol.REFUSAL: True},
    )
    chunks, summary = [], None
    for response in request.exec(decoupled=True):
        if response.has_error():
            raise _Refused(response.error().message())
        outputs = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
        if protocol.CHUNK in outputs:
            chunks.append(outputs[protocol.CHUNK])
        summary = outputs.get(protocol.SUMMARY, summary)
    if summary is None:
        raise _Refused(protocol.refusal(protocol.FAILED, "the clip ended without a summary."))
    if refusal := json.loads(summary[0]).get(protocol.REFUSAL):
        raise _Refused(refusal)
    return [utils.Tensor(protocol.MP4, np.concatenate(chunks)), utils.Tensor(protocol.SUMMARY, summary)]


def _mp4_settings(inputs: list[Any]) -> Any:
    """The request's settings with the output set; what is no JSON object, or so large that nothing should be made of it
    before a token was asked for, is passed on for the other model to refuse."""
    given = [tensor for tensor in inputs if tensor.name() == protocol.SETTINGS]
    text = given[0].as_numpy().reshape(-1)[0] if given else b"{}"
    try:
        settings = json.loads(text or b"{}") if len(text) <= protocol.MAX_SETTINGS_BYTES else None
    except (ValueError, RecursionError):
        settings = None
    if isinstance(settings, dict):
        text = json.dumps({**settings, protocol.OUTPUT: protocol.OUTPUT_MP4}).encode()
    return utils.Tensor(protocol.SETTINGS, np.array([text], np.object_))
