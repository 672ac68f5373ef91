"""How far a download is: bars on a terminal, one line per finished file elsewhere."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


class FetchProgress:
    """Use as a context manager; `file` announces the next file and returns what counts its bytes."""

    def __init__(self, total_bytes: int, say: Callable[[str], None]) -> None:
        self._say = say
        self._finished = 0
        console = Console()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), DownloadColumn(), TransferSpeedColumn())
        self._bars = Progress(
            *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True
        )
        self._all = self._bars.add_task("all", total=total_bytes)
        self._current = self._bars.add_task("")

    def __enter__(self) -> "FetchProgress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def file(self, name: str, size: int) -> Callable[[int], None]:
        """Begin a file of `size` bytes; the result takes the number of its bytes that are there."""
        self._bars.reset(self._current, description=name.rpartition("/")[2], total=size)

        def count(there: int) -> None:
            self._bars.update(self._current, completed=there)
            self._bars.update(self._all, completed=self._finished + there)

        return count

    def done(self, name: str, size: int) -> None:
        """A file is in its place, verified."""
        self._finished += size
        self._say(f"verified {name}")
