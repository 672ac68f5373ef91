"""How much working memory an engine will ask for: found out where it is built, and kept in its sidecar."""

from typing import Any

from vexpress_trt.engines.driver import driver
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.trt.builder import shared_log
from vexpress_trt.engines.trt.flavour import TensorRt
from vexpress_trt.engines.trt.key import Sidecar
from vexpress_trt.engines.trt.loaded_plan import deserialised

RECORD = "working_bytes"  # in what a sidecar tells of the build


def measured(data: Any, tensorrt: TensorRt, options: tuple[str, ...], gpu_id: int) -> dict[str, int]:
    """What the sidecar tells of a plan's working memory, at its largest sizes; nothing where it does not load here."""
    try:
        with driver(gpu_id).current():
            _, engine = deserialised(tensorrt, data, options, shared_log(tensorrt.module))
            return {} if engine is None else {RECORD: int(engine.device_memory_size_v2)}
    except UserError:
        return {}


def recorded(sidecar: Sidecar) -> int | None:
    """Bytes of working memory, or None where the engine was built ahead of time, on another machine."""
    found = sidecar.built.get(RECORD)
    return found if isinstance(found, int) and found >= 0 else None
