"""The engines of a bundle on disk: found by key, whole or absent, never deserialised before they are known to fit."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from vexpress_trt.engines.bundle import ENGINES_FOLDER, Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path, remove, remove_leftovers, sha256_file, target_of
from vexpress_trt.engines.trt.bindings import Binding
from vexpress_trt.engines.trt.key import SIDECAR_VERSION, EngineKey, Sidecar

MAX_SIDECAR_BYTES = 1 << 20
_PLAN, _SIDECAR, _LOCK = ".plan", ".json", ".lock"


@dataclass(frozen=True)
class StoredEngine:
    """One plan and what its sidecar says; `problem` is why it cannot be used, "" where nothing is wrong."""

    plan: Path
    sidecar: Sidecar | None
    problem: str


class EngineStore:
    """The folder `engines` of a bundle: `<key>/<graph>.<profile>.plan` with a `.json` beside it.

    The sidecar is written last and removed first, so a plan without one is what a killed build has left.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.root = bundle.root / ENGINES_FOLDER

    def plan_path(self, key: EngineKey) -> Path:
        """Where the engine with this key lies, or would."""
        return self.root / key.folder / f"{key.graph}.{key.profile}{_PLAN}"

    def stored(self, key: EngineKey) -> StoredEngine | None:
        """The engine of this key, where it is there with every byte that was built."""
        found = self._of(key)
        return None if found is None or self.damage(found) else found

    def seems_there(self, key: EngineKey) -> bool:
        """Whether `stored` finds it, judged by the plan's size: at once, and wrong where its bytes changed."""
        found = self._of(key)
        return found is not None and not self.cut(found)

    def put(self, key: EngineKey, plan: bytes | memoryview, built: dict, bindings: tuple[Binding, ...] = ()) -> Path:
        """Store a plan with its sidecar, or nothing. Raises UserError where the disk is full or cannot be written."""
        path = self.plan_path(key)
        remove(path.with_suffix(_SIDECAR))
        try:
            with atomic_path(path) as temporary:
                temporary.write_bytes(plan)
                digest, size = sha256_file(temporary), temporary.stat().st_size
            with atomic_path(path.with_suffix(_SIDECAR)) as temporary:
                sidecar = Sidecar(SIDECAR_VERSION, key, digest, size, bindings, built)
                temporary.write_text(sidecar.to_json(), encoding="utf-8")
        except BaseException:
            if not path.with_suffix(_SIDECAR).exists():
                remove(path)
            raise
        return path

    @contextlib.contextmanager
    def building(self, key: EngineKey, *, patience: float = -1) -> Iterator[None]:
        """Hold the lock of one engine, so that two processes build it once; waits for the other one's end.

        Raises UserError when `patience` seconds (negative: any) were not enough.
        """
        path = self.plan_path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path.with_suffix(_LOCK))
            lock.acquire(timeout=patience)
        except Timeout:
            raise UserError(f"another process is building {path}: wait for it or stop it") from None
        except OSError as problem:
            raise UserError(f"cannot write {path.parent}: {problem.strerror}; check its permissions") from None
        try:
            yield
        finally:
            lock.release()

    def all(self) -> list[StoredEngine]:
        """Every plan in the folder, those without or with a damaged sidecar included; bytes are not read."""
        files = [file for suffix in (_PLAN, _SIDECAR) for file in self._files(f"[!.]*{suffix}")]
        paths = sorted({file.with_suffix(_PLAN) for file in files})
        return [stored for path in paths if (stored := self._read(path) or self._orphan(path)) is not None]

    def cut(self, stored: StoredEngine) -> str:
        """Why the plan is not as long as what was built, or ""; its bytes are not read."""
        if stored.problem or stored.sidecar is None:
            return stored.problem
        try:
            size = stored.plan.stat().st_size
        except FileNotFoundError:
            return f"{stored.plan.name} is missing"
        expected = stored.sidecar.plan_size
        return "" if size == expected else f"{stored.plan.name} has {size} bytes, not {expected}"

    def damage(self, stored: StoredEngine) -> str:
        """Why the plan's bytes are not those that were built, or ""."""
        if problem := self.cut(stored):
            return problem
        try:
            same = sha256_file(stored.plan) == stored.sidecar.plan_sha256
        except FileNotFoundError:
            return f"{stored.plan.name} is missing"
        return "" if same else f"the content of {stored.plan.name} has changed"

    def outdated(self, stored: StoredEngine) -> str:
        """Why no program with this bundle would ask for the engine, or "": its graph is another one now."""
        if stored.sidecar is None:
            return stored.problem
        key = stored.sidecar.key
        try:
            current = graph_hash(self.bundle, key.graph, key.precision)
        except UserError:
            return f"the bundle has no {key.graph} in {key.precision} any more"
        return "" if current == key.onnx else f"{key.graph} was exported again since"

    def prune(self, on_removal: Callable[[StoredEngine], None]) -> None:
        """Remove engines that are damaged or outdated, and what killed builds have left.

        `on_removal` is called with each engine just before it goes. What a process is building now is left as it is;
        lock files stay, as another process may wait for one. Raises UserError where the folder cannot be written, and
        for a link out of the bundle: what lies behind it may be anybody's.
        """
        inside = self.bundle.root.resolve()
        for folder in sorted({file.parent for file in self._files("*")}):
            if not folder.resolve().is_relative_to(inside):
                raise UserError(f"{folder} leads out of the bundle: remove that link, or what is behind it, yourself")
        for path in [stored.plan for stored in self.all()]:
            with self._unless_built(path) as free:
                stored = (self._read(path) or self._orphan(path)) if free else None
                if stored is not None and (self.outdated(stored) or self.damage(stored)):
                    on_removal(stored)
                    remove(path.with_suffix(_SIDECAR))
                    remove(path)
        for leftover in self._files(".*"):
            engine = target_of(leftover)
            if engine is None:
                continue
            with self._unless_built(engine.with_suffix(_PLAN)) as free:
                if free:
                    remove_leftovers([engine])
                    remove(leftover)

    def _files(self, pattern: str) -> list[Path]:
        return list(self.root.glob(f"*/{pattern}")) if self.root.is_dir() else []

    @contextlib.contextmanager
    def _unless_built(self, path: Path) -> Iterator[bool]:
        """Hold the lock of the engine at `path` where it is free; yields whether it was."""
        lock = FileLock(path.with_suffix(_LOCK))
        try:
            lock.acquire(timeout=0)
        except (Timeout, FileNotFoundError):  # being built, or removed with its folder
            pass
        except OSError as problem:
            raise UserError(f"cannot write {path.parent}: {problem.strerror}; check its permissions") from None
        try:
            yield lock.is_locked
        finally:
            lock.release()

    def _orphan(self, path: Path) -> StoredEngine | None:
        return StoredEngine(path, None, f"{path.name} is missing") if path.with_suffix(_SIDECAR).exists() else None

    def _of(self, key: EngineKey) -> StoredEngine | None:
        """The engine in this key's place, where its sidecar says the same key; the folder's name leaves some out."""
        found = self._read(self.plan_path(key))
        return found if found is not None and found.sidecar is not None and found.sidecar.key == key else None

    def _read(self, path: Path) -> StoredEngine | None:
        if not path.exists():
            return None
        sidecar = path.with_suffix(_SIDECAR)
        try:
            if sidecar.stat().st_size > MAX_SIDECAR_BYTES or not sidecar.is_file():
                return StoredEngine(path, None, f"{sidecar.name} is not a sidecar: it is no file, or too large")
            found = Sidecar.from_json(sidecar.read_text(encoding="utf-8"), sidecar.name)
            elsewhere = f"{path.name} was built as another engine and put here"
            return StoredEngine(path, found, "" if self.plan_path(found.key) == path else elsewhere)
        except FileNotFoundError:
            return StoredEngine(path, None, f"{path.name} has no sidecar: a build was interrupted")
        except (OSError, UnicodeDecodeError) as problem:
            return StoredEngine(path, None, f"{sidecar.name} cannot be read ({problem})")
        except UserError as problem:
            return StoredEngine(path, None, str(problem))


def graph_hash(bundle: Bundle, graph: str, precision: str) -> str:
    """One SHA-256 for a graph and its weights. Raises UserError where the bundle does not have it."""
    import hashlib

    digest = hashlib.sha256()
    for file in sorted(bundle.graph(graph, precision).files):
        if not file.startswith("parity/"):
            digest.update(f"{file} {bundle.manifest.files[file].sha256}\n".encode())
    return digest.hexdigest()
