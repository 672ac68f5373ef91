"""A real `vexpress serve` for tests: started on free ports, asked over gRPC and plain HTTP, stopped."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vexpress_trt.serving.client import Client
from vexpress_trt.serving.worker_process import resident_bytes

START_SECONDS = 60


class Served:
    """A running server."""

    def __init__(self, environment: Path, folder: Path, *flags: str, token: str | None = None) -> None:
        self.token = token
        self.grpc_port, self.http_port, self.metrics_port = free_ports(3)
        self.url = f"127.0.0.1:{self.grpc_port}"
        self._log = folder / "serve.log"
        command = [sys.executable, "-m", "vexpress_trt.cli", "serve", "--environment", str(environment)]
        ports = [f"--{name}={getattr(self, name)}" for name in ("grpc_port", "http_port", "metrics_port")]
        variables = {**os.environ, "TMPDIR": str(folder), "VEXPRESS_TOKEN": token or ""}
        with open(self._log, "w") as log:
            self.process = subprocess.Popen([*command, *ports, *flags], stderr=log, env=variables)
        self.wait_for_log("ready:")

    def log(self) -> str:
        return self._log.read_text()

    def wait_for_log(self, text: str) -> None:
        """Until the server has said this."""
        until = time.monotonic() + START_SECONDS
        while text not in self.log():
            assert self.process.poll() is None and time.monotonic() < until, self.log()
            time.sleep(0.1)

    def client(self, **options: Any) -> Client:
        return Client(self.url, options.pop("token", self.token), **options)

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of an HTTP GET on the main port."""
        return _get(f"http://127.0.0.1:{self.http_port}{path}")

    def metric(self, name: str) -> float:
        """A metric's value; `name` with its labels, as Prometheus writes it."""
        text = _get(f"http://127.0.0.1:{self.metrics_port}/metrics")[1]
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " "))

    def wait_for(self, name: str, value: float, seconds: float = 20) -> None:
        """Until a metric has this value."""
        until = time.monotonic() + seconds
        while self.metric(name) != value:
            assert time.monotonic() < until, f"{name} is {self.metric(name)}, not {value}\n{self.log()}"
            time.sleep(0.05)

    def video(self, files: dict[str, bytes], settings: Any, *, token: str | None = None) -> tuple[dict, bytes]:
        """Summary and MP4 by plain HTTP, with Triton's binary data. Raises HTTPError."""
        entries = [
            {"name": name, "shape": [len(data)], "datatype": "UINT8", "parameters": {"binary_data_size": len(data)}}
            for name, data in files.items()
        ]
        entries.append({"name": "settings", "shape": [1], "datatype": "BYTES", "data": [json.dumps(settings)]})
        outputs = [{"name": "mp4", "parameters": {"binary_data": True}}, {"name": "summary"}]
        head = json.dumps({"inputs": entries, "outputs": outputs}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        url = f"http://127.0.0.1:{self.http_port}/v2/models/vexpress_mp4/infer"
        with urllib.request.urlopen(
            urllib.request.Request(url, head + b"".join(files.values()), headers), timeout=120
        ) as answer:
            size, body = int(answer.headers["Inference-Header-Content-Length"]), answer.read()
        outputs = {output["name"]: output for output in json.loads(body[:size])["outputs"]}
        return json.loads(outputs["summary"]["data"][0]), body[size:]

    def workers(self) -> list[int]:
        """The process ids of the workers."""
        return [pid for pid in _descendants(self.process.pid) if "vexpress_trt.serving.worker" in _command(pid)]

    def triton(self) -> int:
        """Triton's process id."""
        return next(pid for pid in _descendants(self.process.pid) if "bin/tritonserver" in _command(pid))

    def processes(self) -> list[int]:
        """The process ids of Triton, its models and their workers."""
        return _descendants(self.process.pid)

    def memory(self) -> dict[str, int]:
        """Resident bytes of Triton and of all workers."""
        return {"triton": resident_bytes(self.triton()), "workers": sum(map(resident_bytes, self.workers()))}

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def left_of(processes: list[int], seconds: float = 20) -> list[str]:
    """The commands of those that still run after so many seconds; waits for their end until then. One that nobody has
    waited for yet does not run."""
    until = time.monotonic() + seconds
    while (left := [command for pid in processes if (command := _command(pid))]) and time.monotonic() < until:
        time.sleep(0.1)
    return left


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def served(environment: Path, folder: Path, *flags: str, token: str | None = None) -> Iterator[Served]:
    """A server for the length of a block."""
    server = Served(environment, folder, *flags, token=token)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGINT)
            server.process.send_signal(signal.SIGINT)  # at once
            server.process.wait(60)


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as problem:
        return problem.code, problem.read().decode()


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *_descendants(child)]
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""
