"""`vexpress serve`: a Triton server of this machine's own, from its start to its drained end."""

import contextlib
import http.client
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import remove
from vexpress_trt.serving import protocol
from vexpress_trt.serving.environment import Environment
from vexpress_trt.serving.limits import Limits
from vexpress_trt.serving.messages import DRAIN, DRAINED, UNUSABLE
from vexpress_trt.serving.repository import ServerSettings, write_models

_START_SECONDS = 600
_EXIT_SECONDS = 30  # after draining, for Triton to end by itself
_CLOSED_APIS = "shared-memory,model-repository,trace,logging"  # nobody is told the key


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    host: str
    grpc_port: int
    http_port: int
    metrics_port: int


def serve(
    environment: Environment,
    python: str,
    workers: tuple[dict, ...],
    limits: Limits,
    address: Address,
    token: str | None,
    say: Callable[[str], None],
    *,
    verbose: bool = False,
) -> int:
    """Run until SIGTERM, SIGINT or the terminal's end, then drain; a second signal ends at once.

    Returns 0 when everything accepted was answered, 1 when Triton died or the drain's limit passed. Raises UserError
    where a port is taken or the workers cannot generate.
    """
    _check_ports(address)
    with _stop_signal() as stopped, tempfile.TemporaryDirectory(prefix="vexpress-serve-") as folder:
        repository, control, scratch = (Path(folder, name) for name in ("repository", "control", "scratch"))
        for made in (repository, control, scratch):
            made.mkdir()
        write_models(repository, ServerSettings(python, workers, limits, str(control)))
        variables = {**environment.variables(), "TMPDIR": str(scratch), protocol.TOKEN_VARIABLE: token or ""}
        # A frame's memory goes back to the system with its stream, so that what is still held can be seen.
        variables["MALLOC_MMAP_THRESHOLD_"] = "131072"

        command = _command(environment, repository, address, Path(folder).name, verbose)
        # The end of its standard input, also by this process's death, tells the model to end what is in progress.
        triton = subprocess.Popen(command, stdin=subprocess.PIPE, env=variables, cwd=folder, start_new_session=True)
        try:
            if not _wait_until_ready(triton, address, control, stopped):
                return 0
            say(
                f"ready: gRPC {address.host}:{address.grpc_port}, HTTP {address.host}:{address.http_port}, "
                f"metrics {address.host}:{address.metrics_port}; {len(workers)} worker{'s'[: len(workers) > 1]}"
            )
            while not stopped:
                if triton.poll() is not None:
                    say(f"Triton ended unexpectedly (status {triton.returncode})")
                    return 1
                time.sleep(0.1)
            return _drain(triton, control, limits, stopped, say)
        finally:
            triton.stdin.close()
            triton.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                triton.wait(_EXIT_SECONDS)
            triton.kill()
            triton.wait()
            for left in Path("/dev/shm").glob(f"{Path(folder).name}*"):  # of a Triton that was killed
                remove(left)


def _command(environment: Environment, repository: Path, address: Address, name: str, verbose: bool) -> list[str]:
    key = secrets.token_hex(16)
    triton = environment.triton
    return [
        str(triton / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={triton / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={name}",
        f"--cache-directory={triton / 'caches'}",
        f"--http-address={address.host}",
        f"--grpc-address={address.host}",
        f"--metrics-address={address.host}",
        f"--http-port={address.http_port}",
        f"--grpc-port={address.grpc_port}",
        f"--metrics-port={address.metrics_port}",
        "--allow-gpu-metrics=false",
        f"--http-header-forward-pattern=(?i){protocol.AUTHORIZATION}",
        f"--grpc-header-forward-pattern={protocol.AUTHORIZATION}",
        f"--http-restricted-api={_CLOSED_APIS}:vexpress={key}",
        f"--grpc-restricted-protocol={_CLOSED_APIS}:vexpress={key}",
        "--grpc-keepalive-time=20000",
        "--grpc-infer-allocation-pool-size=0",
        "--exit-timeout-secs=5",
        f"--log-info={'true' if verbose else 'false'}",
    ]


def _check_ports(address: Address) -> None:
    for flag in ("grpc_port", "http_port", "metrics_port"):
        port = getattr(address, flag)
        try:
            with socket.create_server((address.host, port)):
                pass
        except (OSError, OverflowError) as problem:
            raise UserError(f"--{flag} {port}: cannot listen there ({problem}); choose another.") from None


def _wait_until_ready(triton: subprocess.Popen, address: Address, control: Path, stopped: list[int]) -> bool:
    """False when it was told to stop meanwhile. Raises UserError where the server cannot come up."""
    until = time.monotonic() + _START_SECONDS
    while not stopped:
        if (control / UNUSABLE).exists():
            raise UserError((control / UNUSABLE).read_text())
        if triton.poll() is not None:
            raise UserError(f"Triton did not start (status {triton.returncode}): see its messages above.")
        if time.monotonic() > until:
            raise UserError(f"Triton was not ready within {_START_SECONDS} seconds.")
        if _ready(address):
            return True
        time.sleep(0.1)
    return False


def _ready(address: Address) -> bool:
    connection = http.client.HTTPConnection(address.host, address.http_port, timeout=2)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    return False


def _drain(
    triton: subprocess.Popen, control: Path, limits: Limits, stopped: list[int], say: Callable[[str], None]
) -> int:
    say("ending: what was accepted is finished, nothing new is taken")
    (control / DRAIN).touch()
    until = time.monotonic() + limits.drain
    while time.monotonic() < until and triton.poll() is None and len(stopped) < 2:
        if (control / DRAINED).exists():
            return 0
        time.sleep(0.1)
    say("ended before everything was finished")
    return 1


@contextlib.contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """A list that gets the number of each SIGTERM and SIGINT, and of the first SIGHUP: a terminal that is closed may
    send several. Started to ignore that one, as by nohup, the process goes on ignoring it."""
    received: list[int] = []
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def note(number: int, frame: object) -> None:
        if number != signal.SIGHUP or number not in received:
            received.append(number)

    before = [signal.signal(number, note) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
