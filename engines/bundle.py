"""A bundle on disk: opened and checked as a whole, written as a whole."""

import contextlib
import os
import shlex
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path, flush, looking, user_cache
from vexpress_trt.engines.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    FileRecord,
    GraphSpec,
    Manifest,
    ModelConfig,
    SchedulerConfig,
    is_safe_path,
)
from vexpress_trt.engines.stamps import file_hashes

ENGINES_FOLDER = "engines"
_MAX_MANIFEST_BYTES = 64 << 20


@dataclass(frozen=True)
class Bundle:
    """A folder with a valid manifest and undamaged files."""

    root: Path
    manifest: Manifest

    @classmethod
    @looking()
    def open(cls, path: Path | str, *, verify: bool = False) -> "Bundle":
        """Open and check the bundle at `path`: manifest, presence, sizes and hashes of all files.

        Hashes are remembered while files do not change; `verify=True` hashes everything anew. Raises UserError that
        names the file and what is wrong with it.
        """
        root = Path(path)
        if not root.exists():
            raise UserError(f"there is no bundle at {root}: make one with `vexpress export --bundle {root} ...`")
        if not root.is_dir():
            raise UserError(f"{root} is not a bundle: a bundle is a folder with a {MANIFEST_NAME}")
        bundle = cls(root, _read_manifest(root))
        bundle._check_files(verify)
        return bundle

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that at least one graph has, in the manifest's order."""
        return tuple(dict.fromkeys(graph.precision for graph in self.manifest.graphs))

    def graph(self, name: str, precision: str) -> GraphSpec:
        """The graph of this name and precision. Raises UserError that says what the bundle has instead."""
        found = {graph.precision: graph for graph in self.manifest.graphs if graph.name == name}
        if precision in found:
            return found[precision]
        if not found:
            names = ", ".join(dict.fromkeys(graph.name for graph in self.manifest.graphs)) or "none"
            raise UserError(f"{self.root} has no graph {name} (it has: {names}): export the bundle again")
        has = f"has {name} in {', '.join(found)} only"
        if self.root.is_relative_to(user_cache()):  # put together by the package: nothing is to be added there
            checkpoints = files("vexpress_trt.models") / "box" / "checkpoints"
            command = self._export_command(str(checkpoints), "box.bundle", precision)
            raise UserError(
                f"the model in the box {has}: choose that, or make a bundle of your own with `{command}` and name it "
                "with --bundle"
            )
        raise UserError(f"{self.root} {has}; add it with `{self._export_command('DIR', str(self.root), precision)}`")

    def _export_command(self, checkpoints: str, target: str, precision: str) -> str:
        """What exports a precision with the settings of this bundle: one of others could not be added to it."""
        names = ("image_width", "image_height", "context_frames")
        settings = [word for name in names for word in (f"--{name}", str(getattr(self.manifest.model, name)))]
        plain = ["--plain"] if self.manifest.provenance.get("form") == "plain" else []
        return shlex.join(
            ["vexpress", "export", "--checkpoints", checkpoints, "--bundle", target, "--precision", precision]
            + settings
            + plain
        )

    def path(self, relative: str) -> Path:
        """Where a file of the bundle lies. Raises ValueError for a path that leaves the folder."""
        if not is_safe_path(relative):
            raise ValueError(f"{relative!r} is not a path inside a bundle")
        return self.root / relative

    def _check_files(self, verify: bool) -> None:
        records = self.manifest.files
        real_root = self.root.resolve()
        for relative, record in records.items():
            path = self.root / relative
            if not path.is_file():
                raise UserError(f"{path} is missing from the bundle: export it again")
            if not path.resolve().is_relative_to(real_root):
                raise UserError(f"{path} is a link that leaves the bundle: replace it by the file or export again")
            size = path.stat().st_size
            if size != record.size:
                raise UserError(f"{path} is damaged: it has {size} bytes instead of {record.size}; export it again")
        hashes = file_hashes(self.root, list(records), remembered=not verify)
        for relative, record in records.items():
            if hashes[relative] != record.sha256:
                raise UserError(
                    f"{self.root / relative} is damaged: its content is not what was exported; export it again"
                )


def graph_bytes(bundle: Bundle, spec: GraphSpec) -> int:
    """What a graph and its weights take on the disk, which is about what they take in an engine."""
    return sum(bundle.manifest.files[file].size for file in spec.files if not file.startswith("parity/"))


@dataclass
class BundleWriter:
    """A bundle being written: put files below `root` (see `path`), then call `finish` once."""

    root: Path
    target: Path
    kept: tuple[GraphSpec, ...] = ()
    manifest: Manifest | None = None

    def path(self, relative: str) -> Path:
        """Where to write a file of the bundle; its folder is created. Raises ValueError for an unsafe path."""
        if not is_safe_path(relative):
            raise ValueError(f"{relative!r} is not a path inside a bundle")
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.stat().st_nlink > 1:
            _unlink_from_others(path)
        return path

    def finish(
        self,
        *,
        producer: str,
        model: ModelConfig,
        graphs: tuple[GraphSpec, ...],
        scheduler: SchedulerConfig | None = None,
        licence: str,
        provenance: dict[str, Any],
        networks: dict[str, dict[str, Any]],
        random_weights: bool,
    ) -> Manifest:
        """Hash the files the graphs list and write the manifest.

        `graphs` are the new ones; those kept of a previous bundle (see `write_bundle`) are added. Raises ValueError
        when a listed file was not written or the manifest is not valid.
        """
        graphs = (*self.kept, *graphs)
        listed = list(dict.fromkeys(file for graph in graphs for file in graph.files))
        missing = [file for file in listed if not (self.root / file).is_file()]
        if missing:
            raise ValueError(f"listed but not written: {', '.join(missing)}")
        hashes = file_hashes(self.root, listed)
        files = {file: FileRecord(hashes[file], (self.root / file).stat().st_size) for file in listed}
        self.manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            producer=producer,
            model=model,
            scheduler=scheduler or SchedulerConfig(),
            graphs=graphs,
            files=files,
            licence=licence,
            provenance=provenance,
            random_weights=random_weights,
            networks=networks,
        )
        (self.root / MANIFEST_NAME).write_text(self.manifest.to_json(), encoding="utf-8")
        return self.manifest


@contextlib.contextmanager
def write_bundle(
    target: Path | str, *, keep: Bundle | None = None, replace: Collection[str] = ()
) -> Iterator[BundleWriter]:
    """Write a bundle that appears at `target` only when the block ends without an exception and `finish` was called.

    An existing bundle at `target` is replaced. With `keep` (an opened bundle, usually the one at `target`) its graphs
    and their files are carried over by hard link, except the precisions in `replace`, which the block writes anew; so
    one precision is added without touching the rest, and built engines stay too, those that a build adds during the
    block included. Raises UserError when `target` is a folder that is not a bundle (it is never deleted), or cannot be
    written, and at the end of the block when another program has put a bundle there in the meantime.
    """
    target = Path(target)
    with looking():
        before = _identity(target)
        foreign = before is None and target.is_dir() and any(target.iterdir())
    if foreign:
        raise UserError(f"{target} is a folder without a {MANIFEST_NAME}, not a bundle: choose another path")
    with atomic_path(target, directory=True) as root:
        writer = BundleWriter(root, target)
        if keep is not None:
            writer.kept = tuple(graph for graph in keep.manifest.graphs if graph.precision not in replace)
            for file in {file for graph in writer.kept for file in graph.files}:
                _link(keep.path(file), writer.path(file))
            _carry_engines(keep.root, root)
        yield writer
        if writer.manifest is None:
            raise ValueError("the bundle was not finished: call finish() inside the block")
        if keep is not None:
            flush(root)  # what takes long comes before the last look
            _carry_engines(keep.root, root)
        if _identity(target) not in (None, before):
            raise UserError(f"another program wrote the bundle {target} meanwhile, it stays: run the command again")


def _identity(target: Path) -> tuple[int, int] | None:
    """Tells one bundle from another that takes its place; None where there is none."""
    manifest = target / MANIFEST_NAME
    if not manifest.is_file():
        return None
    stat = manifest.stat()
    return stat.st_ino, stat.st_mtime_ns


def _carry_engines(source: Path, target: Path) -> None:
    """Link all that is new among the engines of one bundle into another; a build may be adding and renaming some."""
    for folder, _, names in os.walk(source / ENGINES_FOLDER, followlinks=True):
        carried = target / Path(folder).relative_to(source)
        carried.mkdir(parents=True, exist_ok=True)
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                if not _unchanged(Path(folder, name), carried / name):
                    (carried / name).unlink(missing_ok=True)
                    _link(Path(folder, name), carried / name)


def _unchanged(source: Path, copy: Path) -> bool:
    one = source.stat()
    other = copy.stat() if copy.exists() else None
    return other is not None and (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def _link(source: Path | str, target: Path | str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


def _unlink_from_others(path: Path) -> None:
    """Turn a hard link into a file of its own: what is written to it must not reach the bundle it was carried from."""
    with atomic_path(path) as own:
        shutil.copy2(path, own)


def _read_manifest(root: Path) -> Manifest:
    path = root / MANIFEST_NAME
    if not path.is_file():
        raise UserError(f"{root} is not a bundle: it has no {MANIFEST_NAME}")
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise UserError(f"{path} is not a manifest: it is larger than {_MAX_MANIFEST_BYTES >> 20} MiB")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is not UTF-8 text; export the bundle again") from None
    return Manifest.from_json(text, str(path))
