"""Messages between the server and a worker: a small JSON header and bytes, over a socket pair.

Layout: header length and payload length as two little-endian uint32, the header, the payload. Nothing is unpickled.
"""

import json
import socket
import struct
from typing import Any

DRAIN, DRAINED, UNUSABLE = "drain", "drained", "unusable"  # files by which `vexpress serve` and its Triton talk
_LENGTHS = struct.Struct("<II")
_MAX_HEADER = 1 << 20


class Disconnected(Exception):
    """The other side went away."""


def send(connection: socket.socket, header: dict[str, Any], payload: bytes | memoryview = b"") -> None:
    """Send one message; `payload` is any contiguous buffer of bytes. Raises Disconnected."""
    text = json.dumps(header).encode()
    try:
        connection.sendall(_LENGTHS.pack(len(text), len(payload)) + text)
        if len(payload):
            connection.sendall(payload)
    except OSError as problem:
        raise Disconnected from problem


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytearray]:
    """Wait for the next message. Raises Disconnected."""
    header_length, payload_length = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    if header_length > _MAX_HEADER:
        raise Disconnected
    header = json.loads(bytes(_exactly(connection, header_length)))
    return header, _exactly(connection, payload_length)


def _exactly(connection: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    rest = memoryview(data)
    while len(rest):
        try:
            received = connection.recv_into(rest)
        except OSError as problem:
            raise Disconnected from problem
        if not received:
            raise Disconnected
        rest = rest[received:]
    return data
