"""A gRPC server that speaks the streaming half of KServe v2 and answers from a script, on loopback."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from json import dumps
from time import monotonic
from typing import Any

import grpc
import numpy as np

from vexpress_trt.runtime.summary import Summary
from vexpress_trt.serving import client_wire as wire
from vexpress_trt.serving import protocol

FRAMES, HEIGHT, WIDTH = 5, 4, 6
INFO = {"frames": FRAMES, "width": WIDTH, "height": HEIGHT, "fps": 25.0, "fps_fraction": "25/1", "version": 1}
SUMMARY = Summary(
    output_path=None, frames=FRAMES, width=WIDTH, height=HEIGHT, fps=25.0, duration_seconds=0.2, strategy="fix_face",
    backend="fake", backend_reason="a test", precision="fp32", dtype="fp32", seed=42, num_inference_steps=1,
    solver="ddim", guidance_scale=1.0, guided_steps=0, context_frames=12, context_overlap=4, windows=1, window_batch=1,
    portrait_cached=False, denoiser_calls=1, denoiser_calls_before_first_frame=1, stage_seconds={"denoise": 0.1},
    time_to_first_frame=0.1, total_seconds=0.2, frames_per_second=25.0, peak_memory_mib=1.0, random_weights=False,
)  # fmt: skip
Script = Callable[[dict[str, bytes]], Iterator[Any]]


@dataclass
class FakeTriton:
    """What a client sent, and what became of it."""

    url: str = ""
    inputs: list[dict[str, bytes]] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    sent: int = 0
    gone: threading.Event = field(default_factory=threading.Event)


@contextmanager
def fake_triton(script: Script) -> Iterator[FakeTriton]:
    """Serve on a free port; a request is answered with what `script` yields: answers, or a gRPC status to end with."""
    fake = FakeTriton()

    def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        context.add_callback(fake.gone.set)
        request = next(requests)
        fake.models.append(request.model_name)
        fake.inputs.append(_inputs_of(request))
        fake.metadata.append(dict(context.invocation_metadata()))
        for item in script(fake.inputs[-1]):
            if isinstance(item, grpc.StatusCode):
                context.abort(item, "as the script says")
            yield item
            fake.sent += 1

    handler = grpc.stream_stream_rpc_method_handler(
        stream, wire.ModelInferRequest.FromString, wire.ModelStreamInferResponse.SerializeToString
    )
    service, _, method = wire.STREAM_METHOD.strip("/").rpartition("/")
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
    ready = grpc.unary_unary_rpc_method_handler(lambda request, context: b"\x08\x01")  # field 1 is true
    handlers = {method: handler, "ServerReady": ready}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    fake.url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield fake
    finally:
        server.stop(None).wait()


def answer(**tensors: Any) -> Any:
    """One response: str as BYTES [1], arrays as they are."""
    message = wire.ModelStreamInferResponse()
    message.infer_response.model_name = protocol.STREAM_MODEL
    names = {"uint8": "UINT8", "int64": "INT64", "float64": "FP64"}
    for name, value in tensors.items():
        if isinstance(value, str):
            content, kind, shape = value.encode(), "BYTES", [1]
            content = len(content).to_bytes(4, "little") + content
        else:
            content, kind, shape = value.tobytes(), names[value.dtype.name], list(value.shape)
        message.infer_response.outputs.add(name=name, datatype=kind, shape=shape)
        message.infer_response.raw_output_contents.append(content)
    return message


def error(text: str) -> Any:
    """A refusal as Triton sends it."""
    return wire.ModelStreamInferResponse(error_message=text)


def picture(index: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """The frame that the fake makes, uint8 [H, W, 3]."""
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)


def frame(index: int, image: np.ndarray | None = None) -> Any:
    """A response with one frame, made now."""
    return answer(
        frame=picture(index) if image is None else image,
        index=np.array([index]),
        time=np.array([index / 25]),
        made_at=np.array([monotonic()]),
    )


def info(**changes: Any) -> Any:
    """The first response."""
    return answer(info=dumps({**INFO, **changes}))


def summary() -> Any:
    """The last response."""
    return answer(summary=dumps(asdict(SUMMARY)))


def whole_clip(inputs: dict[str, bytes]) -> Iterator[Any]:
    """All that a good server sends; an empty answer closes, as Triton's final flag does."""
    yield info()
    yield from map(frame, range(FRAMES))
    yield summary()
    yield answer()


def _inputs_of(request: Any) -> dict[str, bytes]:
    names = [tensor.name for tensor in request.inputs]
    return dict(zip(names, request.raw_input_contents, strict=True))
