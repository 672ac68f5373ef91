"""What does not fit in a set of weight files: everything at once, grouped by file."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from vexpress_trt.engines.errors import UserError
from vexpress_trt.export.layouts import Renamed

_LISTED = 8  # names per group; the rest is counted

Shape = tuple[int, ...]


@dataclass(frozen=True)
class FileProblems:
    """The problems of one file; `remarks` are sentences about the file as a whole."""

    file: str
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped or self.remarks)

    def lines(self) -> list[str]:
        """The file's name and one indented line per kind of problem."""
        groups = (("missing", self.missing), ("unexpected", self.unexpected), ("wrong shape", self.misshaped))
        listed = [f"    {kind} ({len(names)}): {_shortened(names)}" for kind, names in groups if names]
        return [f"  {self.file}", *(f"    {remark}" for remark in self.remarks), *listed]


def compare(
    file: str, found: Renamed, expected: Mapping[str, Shape], *, may_lack: Set[str] = frozenset()
) -> FileProblems:
    """How `found` differs from `expected` {name: shape}; names in `may_lack` may be absent but not of another shape."""
    names = found.stored_names
    wrong = [
        f"{names[name]} is {list(tensor.shape)}, expected {list(expected[name])}"
        for name, tensor in found.tensors.items()
        if name in expected and tuple(tensor.shape) != tuple(expected[name])
    ]
    return FileProblems(
        file,
        missing=tuple(name for name in expected if name not in found.tensors and name not in may_lack),
        unexpected=tuple(names[name] for name in found.tensors if name not in expected),
        misshaped=tuple(wrong),
    )


def refuse(folder: object, problems: list[FileProblems]) -> None:
    """Raise one UserError that lists all problems; do nothing where there are none."""
    bad = [problem for problem in problems if problem]
    if bad:
        lines = [line for problem in bad for line in problem.lines()]
        raise UserError(
            "\n".join(
                [
                    f"the weights in {folder} do not fit together:",
                    *lines,
                    "Take all files from one model, with its configurations, or get the official ones: "
                    f"vexpress fetch --checkpoints {folder}",
                ]
            )
        )


def _shortened(names: tuple[str, ...]) -> str:
    rest = len(names) - _LISTED
    return "; ".join(names[:_LISTED]) + (f"; … and {rest} more" if rest > 0 else "")
