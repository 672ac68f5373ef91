"""How much of the first GPU's memory is in use, and by how much that may rise where nothing is kept."""

from typing import Any

from vexpress_trt.engines.driver import driver

GROWTH_MIB = 8.0  # what the driver may take for itself from one look to the next
_TOLD = 12


def used_mib() -> float:
    """MiB in use, by whomever."""
    gpu = driver(0)
    with gpu.current():
        free, total = gpu.mem_get_info()
    return (total - free) / 2**20


class MemoryWatch:
    """Looks at the memory in use as often as it is asked to."""

    def __init__(self) -> None:
        self._seen: list[float] = []

    def look(self) -> None:
        self._seen.append(used_mib())

    @property
    def growth(self) -> float:
        """MiB by which the most that was seen lies above the most in the first quarter of the looks, when all that is
        allocated once has been."""
        settled = max(1, len(self._seen) // 4)
        return max(self._seen, default=0.0) - max(self._seen[:settled], default=0.0)

    def found(self) -> dict[str, Any]:
        """The growth, and what was seen at some of the looks, in MiB: a step differs from a slope."""
        every = max(1, len(self._seen) // _TOLD)
        return {"memory_growth_mib": self.growth, "memory_in_use_mib": [round(seen) for seen in self._seen[::every]]}
