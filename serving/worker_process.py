"""A worker seen from the server: started, given jobs, cancelled, and replaced when it dies."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vexpress_trt.serving import messages

CLOSING_KINDS = ("done", "refused", "cancelled")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class WorkerDied(Exception):
    """The process ended, or stopped making sense, in the middle of a job."""


class Unusable(Exception):
    """The worker says that it can never generate; the message is its sentence."""


class WorkerProcess:
    """One running `vexpress_trt.serving.worker`.

    `python` is the interpreter that has the runtime, which need not be this one; `options` are the request's fields
    that the server decides. Raises WorkerDied or Unusable when the process does not come up.
    """

    def __init__(self, python: str, options: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        command = [python, "-m", "vexpress_trt.serving.worker", "--connection", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                [*command, "--options", json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._connection = ours
        try:
            ready = self.receive(lambda: None)[0]
            if ready["kind"] == "unusable":
                raise Unusable(ready["sentence"])
        except BaseException:
            self.close()
            raise

    def memory(self) -> int:
        """Resident bytes; 0 where that cannot be read."""
        return resident_bytes(self._process.pid)

    def start(self, job: dict[str, Any]) -> None:
        """Give it a job; it has taken it up, and can be cancelled, when this returns. Raises WorkerDied."""
        try:
            messages.send(self._connection, job)
        except messages.Disconnected as problem:
            raise WorkerDied from problem
        self.receive(lambda: None)

    def receive(self, poll: Callable[[], None], every: float = 0.1) -> tuple[dict[str, Any], bytearray]:
        """The next message; `poll` is called at least each `every` seconds while there is none. Raises WorkerDied, and
        what `poll` raises."""
        try:
            while True:
                poll()
                if select.select([self._connection], [], [], every)[0]:
                    return messages.receive(self._connection)
        except (messages.Disconnected, ValueError) as problem:
            raise WorkerDied from problem

    def cancel(self) -> None:
        """Ask it to end the job in progress; its closing message still comes."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGUSR1)

    def close(self) -> None:
        """End the process at once."""
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()


def resident_bytes(pid: int) -> int:
    """What a process has in memory; 0 where that cannot be read."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0
