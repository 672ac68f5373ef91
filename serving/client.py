"""A client of `vexpress serve`: a request goes out, frames come back as they are made.

    from vexpress_trt.serving.client import Client

    with Client("localhost:8001") as client:
        for frame in client.generate(GenerationRequest("portrait.jpg", "speech.wav", fps=25)):
            show(frame.time, frame.image)  # uint8 RGB [H, W, 3]

Needs the `client` extra (gRPC). README.md describes the protocol.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np

from vexpress_trt.engines.closing import Closing
from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.frame import Frame
from vexpress_trt.runtime.request import GenerationRequest
from vexpress_trt.runtime.summary import Summary
from vexpress_trt.serving import protocol

try:
    import grpc

    from vexpress_trt.serving import client_wire as wire
    from vexpress_trt.serving.client_messages import message_of, tensors_of
except ImportError as problem:
    raise UserError(
        f"a client of a server needs gRPC ({problem}): install it with `pip install 'vexpress-trt[client]'`."
    ) from None

MAX_SIDE = 1 << 14  # pixels
MAX_MESSAGE = 64 << 20  # bytes of one answer: a frame of the largest size has 12 MiB
_REMEDIES = {
    protocol.UNAUTHORIZED: f"give the server's token with --token or {protocol.TOKEN_VARIABLE}",
    protocol.TIMEOUT: "give shorter speech or fewer steps, or let the server allow more time",
}


class ServerError(UserError):
    """A request that the server, or the way to it, did not carry out. `code`: one of `protocol.CODES`."""

    def __init__(self, sentence: str, code: str = protocol.FAILED) -> None:
        super().__init__(sentence)
        self.code = code


class ServerBusy(ServerError):
    """The server's queue is full, or it is ending: the same request may succeed later."""


@dataclass(frozen=True)
class ClipInfo:
    """What a clip will be, known before its first frame."""

    frames: int
    width: int
    height: int
    fps: float


class Client(Closing):
    """A connection to a server; several requests may run at once. Use as a context manager, or call `close`.

    `url`: HOST, HOST:PORT or grpc://HOST:PORT of the server's gRPC port (default 8001); grpcs:// for TLS. `timeout`:
    seconds that a whole clip may take, None for as long as the server allows. Nothing is connected before `generate`.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout: float | None = None) -> None:
        """Raises UserError for a URL or a token that cannot be one."""
        scheme, _, address = url.rpartition("://")
        host, _, port = address.rpartition(":") if ":" in address.rpartition("]")[2] else (address, "", "")
        if scheme not in ("", "grpc", "grpcs") or not host or "/" in address or not (port.isdigit() or not port):
            raise UserError(f"{url!r} is not the address of a server: give HOST:PORT of its gRPC port.")
        if token and not (token.isascii() and token.isprintable()):
            raise UserError("the token has characters that cannot travel in a header: use letters, digits and marks.")
        self.url = url
        self._timeout = timeout
        self._metadata = [(protocol.AUTHORIZATION, protocol.BEARER + token)] if token else []
        target = f"{host}:{port or protocol.GRPC_PORT}"
        options = [("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.enable_http_proxy", 0)]
        if scheme == "grpcs":
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)
        else:
            self._channel = grpc.insecure_channel(target, options)
        self._stream = self._channel.stream_stream(
            wire.STREAM_METHOD,
            request_serializer=wire.ModelInferRequest.SerializeToString,
            response_deserializer=wire.ModelStreamInferResponse.FromString,
        )

    def generate(self, request: GenerationRequest) -> "ClientGeneration":
        """Send a request and wait until the server has taken it up and read its inputs.

        Raises UserError for what cannot be used, ServerBusy where the server has no room, and ServerError where it is
        not there or failed.
        """
        return ClientGeneration(self.url, self._stream, message_of(request), self._timeout, self._metadata)

    def close(self) -> None:
        """End the connection; what still runs on it is cancelled."""
        self._channel.close()


class ClientGeneration:
    """A clip that a server generates: iterate for its frames, then read `summary`.

    `info` says what it will be. Closing the iterator, leaving a loop over it, or `cancel` stops the server's work.
    Of a slow consumer only a few frames wait in this process; the server keeps the others.
    """

    def __init__(self, url: str, stream: Any, message: Any, timeout: float | None, metadata: list) -> None:
        self._url = url
        self._received = self._expected = 0  # frames
        self._summary: Summary | None = None
        self.latency: list[float] = []  # seconds from a frame's making to its receipt, where both share a clock
        self._answers = stream(iter([message]), timeout=timeout, metadata=metadata)
        try:
            self.info = self._read_info()
            self._expected = self.info.frames
        except BaseException:
            self.cancel()
            raise

    @property
    def summary(self) -> Summary:
        """The server's closing figures. Raises RuntimeError before the last frame was taken."""
        if self._summary is None:
            raise RuntimeError("the summary exists when all frames were taken")
        return self._summary

    def cancel(self) -> None:
        """Stop the server's work, from any thread."""
        self._answers.cancel()

    def __iter__(self) -> Iterator[Frame]:
        try:
            while self._summary is None:
                answer = self._next()
                if protocol.SUMMARY in answer:
                    self._summary = self._read_summary(answer)
                else:
                    yield self._read_frame(answer)
            for _ in self._answers:  # what follows the summary is the end of the stream
                pass
        except grpc.RpcError as problem:
            raise self._broken(problem) from None
        finally:
            self.cancel()

    def _next(self) -> dict[str, Any]:
        """The next answer that carries something, tensors by name: arrays, or str for text."""
        while True:
            try:
                message = next(self._answers)
            except StopIteration:
                raise ServerError(f"{self._url}: the server ended the stream {self._place()}.") from None
            except grpc.RpcError as problem:
                raise self._broken(problem) from None
            if message.error_message:
                raise _refusal(message.error_message)
            try:
                answer = tensors_of(message.infer_response)
            except ValueError as problem:
                raise self._unlike(str(problem)) from None
            if answer:
                return answer

    def _read_info(self) -> ClipInfo:
        try:
            values = json.loads(self._next()[protocol.INFO])
            if values["version"] != protocol.VERSION:
                raise self._unlike(f"version {values['version']} instead of {protocol.VERSION}")
            info = ClipInfo(*(int(values[name]) for name in ("frames", "width", "height")), float(values["fps"]))
            if min(info.frames, info.width, info.height) < 1 or max(info.width, info.height) > MAX_SIDE:
                raise ValueError
            return info
        except (KeyError, TypeError, ValueError):
            raise self._unlike("no description of the clip") from None

    def _read_frame(self, answer: dict[str, Any]) -> Frame:
        try:
            image, index = answer[protocol.FRAME], int(answer[protocol.INDEX][0])
            time, made_at = float(answer[protocol.TIME][0]), float(answer[protocol.MADE_AT][0])
        except (KeyError, IndexError):
            raise self._unlike(f"an answer of {', '.join(answer)}") from None
        if image.shape != (self.info.height, self.info.width, 3) or image.dtype != np.uint8:
            raise self._unlike(f"a frame of shape {image.shape}")
        if index != self._received or index >= self.info.frames:
            raise self._unlike(f"frame {index} where {self._received} of {self.info.frames} was due")
        self._received += 1
        self.latency.append(monotonic() - made_at)
        return Frame(index, time, image)

    def _read_summary(self, answer: dict[str, Any]) -> Summary:
        if self._received != self.info.frames:
            raise self._unlike(f"{self._received} frames instead of {self.info.frames}")
        try:
            return Summary(**json.loads(answer[protocol.SUMMARY]))
        except (TypeError, ValueError):
            raise self._unlike("a summary of other fields") from None

    def _unlike(self, what: str) -> ServerError:
        return ServerError(f"{self._url}: the server speaks another protocol ({what}): use the same version on both.")

    def _broken(self, problem: Any) -> ServerError:
        code, details = problem.code(), problem.details()
        if code == grpc.StatusCode.UNAVAILABLE and not self._expected:
            return ServerError(
                f"no server answers at {self._url} ({details}): start one with `vexpress serve`, or check the address."
            )
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return ServerError(
                f"{self._url}: the client's own time limit passed {self._place()}: allow more.", protocol.TIMEOUT
            )
        if code == grpc.StatusCode.CANCELLED:
            return ServerError(f"{self._url}: the request was cancelled {self._place()}.")
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return ServerError(f"{self._url} is no Triton server: give the gRPC port of `vexpress serve`.")
        return ServerError(f"{self._url}: the connection broke {self._place()} ({code.name}: {details}).")

    def _place(self) -> str:
        return f"after {self._received} of {self._expected} frames" if self._expected else "before the first frame"


def _refusal(text: str) -> UserError:
    code, sentence = protocol.parse_refusal(text)
    if code == protocol.INVALID:
        return UserError(sentence)
    said = f"the server is busy: {sentence}" if code == protocol.BUSY else f"the server refused ({code}): {sentence}"
    if code == protocol.FAILED:
        said = f"the server failed: {sentence}"
    remedy = f"; {_REMEDIES[code]}" if code in _REMEDIES else ""
    return (ServerBusy if code == protocol.BUSY else ServerError)(said.rstrip(". ") + remedy + ".", code)
