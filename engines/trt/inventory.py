"""`vexpress engines list|verify|prune`: what is built in a bundle and whether it can still be used."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.trt.host_code import distrust
from vexpress_trt.engines.trt.store import EngineStore, StoredEngine


@dataclass(frozen=True)
class EngineRow:
    """One engine: `problem` is why it cannot be used, "" where nothing is known to be wrong."""

    plan: str
    graph: str
    backend: str
    version: str
    precision: str
    targets: tuple[str, ...]
    profile: str
    options: tuple[str, ...]
    plan_bytes: int
    problem: str

    def as_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return asdict(self)


def list_engines(bundle: Path, *, verify: bool = False) -> list[EngineRow]:
    """All engines of a bundle; their sizes are compared, `verify` also reads every byte.

    Raises UserError for an unusable bundle.
    """
    store = EngineStore(Bundle.open(bundle))
    return [_row(store, stored, verify) for stored in store.all()]


def prune_engines(bundle: Path) -> list[EngineRow]:
    """Remove damaged and outdated engines; returns them. Raises UserError where they cannot be removed."""
    store, rows = EngineStore(Bundle.open(bundle)), []
    store.prune(lambda stored: rows.append(_row(store, stored, verify=True)))
    return rows


def format_engines(rows: list[EngineRow], none: str) -> str:
    """Two lines for each engine, for people: what it is, and where it lies, for which sizes; `none` without rows."""
    if not rows:
        return none
    lines = [f"{'graph':<17} {'backend':<13} {'version':<11} {'precision':<9} {'targets':<14} {'MiB':>8}  state"]
    for row in rows:
        lines.append(
            f"{row.graph:<17} {row.backend:<13} {row.version:<11} {row.precision:<9} {','.join(row.targets):<14} "
            f"{row.plan_bytes / 2**20:8.1f}  {row.problem or distrust(row.options) or 'ok'}"
        )
        options = f", options {', '.join(row.options)}" if row.options else ""
        lines.append(f"  {row.plan}: sizes {row.profile}{options}")
    return "\n".join(lines)


def _row(store: EngineStore, stored: StoredEngine, verify: bool) -> EngineRow:
    problem = stored.problem or store.outdated(stored) or (store.damage(stored) if verify else store.cut(stored))
    size = stored.plan.stat().st_size if stored.plan.exists() else 0
    relative = stored.plan.relative_to(store.bundle.root).as_posix()
    if stored.sidecar is None:
        return EngineRow(relative, stored.plan.stem, "?", "?", "?", (), "?", (), size, problem)
    key = stored.sidecar.key
    return EngineRow(
        relative,
        key.graph,
        key.backend,
        key.version,
        key.precision,
        key.targets,
        key.profile,
        key.options,
        size,
        problem,
    )
