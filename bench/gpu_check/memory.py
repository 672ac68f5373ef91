"""How much of the first GPU's memory is in use, and by how much that may rise where nothing is kept."""

from vexpress_trt.engines.driver import driver

GROWTH_MIB = 8.0  # what the driver may take for itself from one look to the next


def used_mib() -> float:
    """MiB in use, by whomever."""
    gpu = driver(0)
    with gpu.current():
        free, total = gpu.mem_get_info()
    return (total - free) / 2**20
