"""What server and clients agree on: names of models and tensors, settings, error codes, limits.

Nothing but the standard library is imported, so that both sides and any NumPy can use it. README.md describes the
protocol in words.
"""

from dataclasses import fields

from vexpress_trt.runtime.request import GenerationRequest

VERSION = 1

# Models: STREAM answers with many responses (gRPC only), MP4_MODEL with one (HTTP as well).
STREAM_MODEL, MP4_MODEL = "vexpress", "vexpress_mp4"

# Inputs, all of one dimension: bytes of files as UINT8, `settings` a single BYTES element.
PORTRAIT, AUDIO, KPS, SETTINGS = "portrait", "audio", "kps", "settings"

# Outputs. Each response of the streaming model carries some of them:
INFO = "info"  # BYTES [1], first response: JSON of frames, width, height, fps, fps_fraction, version
FRAME = "frame"  # UINT8 [H, W, 3], RGB, with INDEX, TIME and MADE_AT
CHUNK = "chunk"  # UINT8 [n], the next piece of a fragmented MP4, with INDEX and MADE_AT
INDEX = "index"  # INT64 [1]
TIME = "time"  # FP64 [1], seconds in the clip
MADE_AT = "made_at"  # FP64 [1], the server's CLOCK_MONOTONIC when the runtime yielded it
SUMMARY = "summary"  # BYTES [1], last response: JSON of runtime.summary.Summary
MP4 = "mp4"  # UINT8 [n], the whole file: MP4_MODEL only

# Parameter of a request that MP4_MODEL passes on: a refusal is then a SUMMARY of this one name, with the error's text.
# Of errors that one model answers another with, Triton 2.51 delivers only a first answer.
REFUSAL = "refusal"

# `settings` is a JSON object of request fields that are not files, of OUTPUT and KPS_FPS.
OUTPUT = "output"
KPS_FPS = "kps_fps"  # frames per second of a track that is an .npy: a number that stands beside the file, not in it
OUTPUT_FRAMES, OUTPUT_MP4 = OUTPUTS = ("frames", "mp4")
FILE_FIELDS = ("reference_image_path", "audio_path", "kps_path")  # sent as PORTRAIT, AUDIO and KPS
SERVER_FIELDS = (  # the server's own: refused in a request
    "bundle output_path dump_tensors threads device gpu_id gpu_memory backend dtype face_model_dir "
    "portrait_cache".split()
)
SETTING_FIELDS = tuple(
    spec.name for spec in fields(GenerationRequest) if spec.name not in (*FILE_FIELDS, *SERVER_FIELDS)
)

# A refusal reads "CODE: sentence".
INVALID = "invalid"  # the client's fault: inputs or settings that cannot be used
BUSY = "busy"  # the queue is full or the server is ending; try again later
UNAUTHORIZED = "unauthorized"  # no token, or another one
TIMEOUT = "timeout"  # the request took longer than the server allows
FAILED = "failed"  # the server's fault: a worker died
CODES = (INVALID, BUSY, UNAUTHORIZED, TIMEOUT, FAILED)

AUTHORIZATION = "authorization"  # HTTP header and gRPC metadata: "Bearer TOKEN"
BEARER = "Bearer "
TOKEN_VARIABLE = "VEXPRESS_TOKEN"  # in the environment of servers and clients

MAX_PORTRAIT_BYTES = 32 << 20
MAX_AUDIO_BYTES = 256 << 20
MAX_KPS_BYTES = 64 << 20
MAX_SETTINGS_BYTES = 64 << 10

GRPC_PORT, HTTP_PORT, METRICS_PORT = 8001, 8000, 8002


def refusal(code: str, sentence: str) -> str:
    """The text of an error answer."""
    return f"{code}: {sentence}"


def parse_refusal(text: str) -> tuple[str, str]:
    """Code and sentence of an error answer. Words before the code, as Triton may add, are dropped; a text without a
    known code is `failed`."""
    starts = {text.find(f"{code}: "): code for code in CODES if f"{code}: " in text}
    if not starts:
        return FAILED, text
    start = min(starts)
    return starts[start], text[start + len(starts[start]) + 2 :]
