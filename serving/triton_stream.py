"""The streaming model inside Triton: takes requests apart, hands them to the dispatcher, passes answers on.

This runs in Triton's Python, which has NumPy below 2 and nothing of the runtime: the workers have that.
"""

import hmac
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as utils

from vexpress_trt.serving import protocol
from vexpress_trt.serving.dispatcher import Dispatcher
from vexpress_trt.serving.errors import Refusal
from vexpress_trt.serving.job import Job
from vexpress_trt.serving.limits import Limits
from vexpress_trt.serving.messages import DRAIN, DRAINED, UNUSABLE
from vexpress_trt.serving.metrics import TritonMetrics
from vexpress_trt.serving.triton_errors import error_response
from vexpress_trt.serving.worker_process import Unusable, WorkerDied, WorkerProcess, resident_bytes

_FINAL = utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """What Triton's Python backend calls. Parameter `vexpress` of the configuration is JSON, see `repository`."""

    def initialize(self, args: dict[str, str]) -> None:
        if int(np.__version__.split(".")[0]) >= 2:
            raise RuntimeError("this Triton answers with empty tensors under NumPy 2: install numpy<2 for it")
        given = json.loads(json.loads(args["model_config"])["parameters"]["vexpress"]["string_value"])
        self._token = os.environ.get(protocol.TOKEN_VARIABLE, "")
        self._limits = Limits(**given["limits"])
        triton = os.getppid()
        self._metrics = TritonMetrics(utils, len(given["workers"]))
        control = given.get("control")
        for options in given["workers"]:  # a bundle inside the repository moves with it
            options["bundle"] = str(Path(args["model_repository"], options["bundle"]))
        try:
            self._dispatcher = Dispatcher(
                [partial(WorkerProcess, given["python"], options) for options in given["workers"]],
                self._limits,
                self._metrics,
                _growth_of(triton),
            )
        except (Unusable, WorkerDied) as problem:
            sentence = str(problem) or "a worker did not start: see its message above"
            if control:
                Path(control, UNUSABLE).write_text(sentence)
            raise RuntimeError(sentence) from None
        threading.Thread(target=_end_with, args=(triton,), daemon=True).start()
        if control:
            threading.Thread(target=self._drain_when_told, args=(Path(control),), daemon=True).start()
            threading.Thread(target=self._end_with_server, args=(triton,), daemon=True).start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            parameters = {name.lower(): value for name, value in json.loads(request.parameters() or "{}").items()}
            answers = _Answers(request.get_response_sender(), refusal_as_summary=protocol.REFUSAL in parameters)
            try:
                self._authorize(parameters)
                self._dispatcher.submit(Job.of(*_inputs(request), answers, self._limits))
            except Refusal as refusal:
                self._refuse(answers, refusal)
            except Exception as problem:
                utils.Logger.log_error(f"a request failed: {problem!r}")
                self._refuse(answers, Refusal(protocol.FAILED, f"internal error ({type(problem).__name__})."))

    def _refuse(self, answers: "_Answers", refusal: Refusal) -> None:
        self._metrics.outcome(refusal.code)
        answers.refuse(refusal)

    def finalize(self) -> None:
        self._dispatcher.close()

    def _authorize(self, parameters: dict[str, Any]) -> None:
        if not self._token:
            return
        given = str(parameters.get(protocol.AUTHORIZATION, ""))
        if not hmac.compare_digest(given.encode(), (protocol.BEARER + self._token).encode()):
            raise Refusal(protocol.UNAUTHORIZED, "this server asks for a token, and the request has none or another.")

    def _drain_when_told(self, control: Path) -> None:
        while not (control / DRAIN).exists():
            time.sleep(0.2)
        self._dispatcher.drain()
        (control / DRAINED).touch()

    def _end_with_server(self, triton: int) -> None:
        """End everything at once when `vexpress serve`, which has the other end of our standard input, closes it or was
        killed."""
        os.read(0, 1)
        self._dispatcher.close()
        if os.getppid() == triton:
            os.kill(triton, signal.SIGTERM)


class _Answers:
    """Answers to one request through Triton's response sender."""

    def __init__(self, sender: Any, *, refusal_as_summary: bool) -> None:
        self._sender, self._refusal_as_summary = sender, refusal_as_summary

    def send(self, header: dict[str, Any], payload: bytearray) -> None:
        if not self._passed(utils.InferenceResponse(_tensors(header, payload))):
            raise Refusal(protocol.FAILED, "the server has no room for its answers: send it again later.")

    def refuse(self, refusal: Refusal) -> None:
        if self._refusal_as_summary:
            response = utils.InferenceResponse([_text(protocol.SUMMARY, {protocol.REFUSAL: refusal.text})])
        else:
            response = error_response(refusal.text)
        self._passed(response, flags=_FINAL)

    def end(self) -> None:
        self._passed(flags=_FINAL)

    def cancelled(self) -> bool:
        return self._sender.is_cancelled()

    def _passed(self, *response: Any, **flags: Any) -> bool:
        """Send; False where Triton cannot take it, as when its shared memory is full."""
        try:
            self._sender.send(*response, **flags)
        except utils.TritonModelException as problem:
            utils.Logger.log_error(f"an answer was lost: {problem}")
            return False
        return True


def _tensors(header: dict[str, Any], payload: bytearray) -> list[Any]:
    kind = header["kind"]
    if kind == "info":
        return [_text(protocol.INFO, header["info"])]
    if kind == "done":
        return [_text(protocol.SUMMARY, header["summary"])]
    values = np.frombuffer(payload, np.uint8)
    tensors = [
        utils.Tensor(protocol.INDEX, np.array([header["index"]], np.int64)),
        utils.Tensor(protocol.MADE_AT, np.array([header["made_at"]], np.float64)),
    ]
    if kind == "chunk":
        return [*tensors, utils.Tensor(protocol.CHUNK, values)]
    shown = utils.Tensor(protocol.TIME, np.array([header["time"]], np.float64))
    return [*tensors, shown, utils.Tensor(protocol.FRAME, values.reshape(header["shape"]))]


def _text(name: str, content: dict[str, Any]) -> Any:
    return utils.Tensor(name, np.array([json.dumps(content).encode()], np.object_))


def _inputs(request: Any) -> tuple[bytes, bytes, bytes | None, bytes]:
    """Portrait, audio, key points (or None) and settings. Raises Refusal."""
    found = {tensor.name(): tensor for tensor in request.inputs()}
    for name in (protocol.PORTRAIT, protocol.AUDIO):
        if name not in found:
            raise Refusal(protocol.INVALID, f"the {name} is missing.")
    portrait, audio = (found[name].as_numpy().tobytes() for name in (protocol.PORTRAIT, protocol.AUDIO))
    kps = found[protocol.KPS].as_numpy().tobytes() if protocol.KPS in found else None
    if protocol.SETTINGS not in found:
        return portrait, audio, kps, b""
    try:
        settings = found[protocol.SETTINGS].as_numpy().reshape(-1)[0]
    except Exception:
        raise Refusal(protocol.INVALID, "settings is not one string.") from None
    return portrait, audio, kps, settings


def _end_with(triton: int) -> None:
    """End this process, and with it its workers, when Triton has ended: a Triton that stops waiting for the clips in
    progress leaves us behind."""
    while os.getppid() == triton:
        time.sleep(0.5)
    os._exit(1)


def _growth_of(triton: int) -> Callable[[], int]:
    """A function of the bytes by which Triton's process has grown since now: the answers that it holds."""
    start = resident_bytes(triton)
    return lambda: resident_bytes(triton) - start
