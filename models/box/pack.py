"""Put trained checkpoints into the box: `python -m vexpress_trt.models.box.pack CHECKPOINTS` (needs the export extra).

The checkpoints are copied, exported in FP32 at 128x128, and the bundle's weights written down as places in them. Before
anything is replaced, the bundle is put together again from what will be shipped and must be the exported one.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path, remove
from vexpress_trt.engines.manifest import MANIFEST_NAME, GraphSpec
from vexpress_trt.engines.onnx_files import external_location, load_structure
from vexpress_trt.engines.onnx_weights import initializer_arrays
from vexpress_trt.models.box.box import BOX, CHECKPOINTS, GRAPHS, PLACES, REST, places_text, unpack
from vexpress_trt.models.box.weights import Piece, find_pieces
from vexpress_trt.models.mini.pose import SIZE

LICENCE = "Apache-2.0; trained from scratch on drawn faces and synthesised speech"
_TENSOR_FILES = (".bin", ".safetensors")


def pack(checkpoints: Path, box: Path = BOX) -> None:
    """Fill `box` from a checkpoints folder in the official layout, replacing the model that is there.

    Raises UserError for checkpoints that cannot be exported.
    """
    from vexpress_trt.export.build_bundle import export_bundle
    from vexpress_trt.export.checkpoints import RANDOM_MARK, load_checkpoints

    with tempfile.TemporaryDirectory(prefix="vexpress-pack-") as name:
        work = Path(name)
        given = load_checkpoints(checkpoints)
        for file in (*given.files, *([RANDOM_MARK] if given.random_weights else [])):
            copy = work / CHECKPOINTS / file
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoints / file, copy)
        exported = work / "exported.bundle"
        export_bundle(
            load_checkpoints(work / CHECKPOINTS), exported, precisions=("fp32",), image_width=SIZE, image_height=SIZE
        )
        bundle = Bundle.open(exported)
        describe(bundle, work, bundle.manifest.licence if bundle.manifest.random_weights else LICENCE)
        unpack(work / "again.bundle", work)  # its hashes are those of the exported files
        for part in (CHECKPOINTS, GRAPHS):
            with atomic_path(box / part, directory=True) as folder:
                shutil.copytree(work / part, folder, dirs_exist_ok=True)
        for part in (PLACES, REST):
            shutil.copyfile(work / part, box / part)


def describe(bundle: Bundle, box: Path, licence: str) -> None:
    """Write to `box`, which holds the checkpoints, everything else that `unpack` needs to make `bundle` again."""
    sources = {
        str(path.relative_to(box)): path.read_bytes()
        for path in sorted((box / CHECKPOINTS).rglob("*"))
        if path.suffix in _TENSOR_FILES
    }
    rest, files = bytearray(), {}
    weight_files = {graph.files[1]: None for graph in bundle.manifest.graphs}
    for name in weight_files:
        pieces, missing = find_pieces(list(_stored(bundle, name)), sources)
        for offset, array in missing:
            axes = tuple(range(array.ndim))
            pieces.append(Piece(offset, REST, len(rest), array.dtype.name, array.shape, axes, array.dtype.name))
            rest += array.tobytes()
        files[name] = bundle.path(name).stat().st_size, sorted(pieces, key=lambda piece: piece.offset)
    (box / REST).write_bytes(rest)
    (box / PLACES).write_text(places_text([*sources, REST], files), encoding="utf-8")
    remove(box / GRAPHS)
    for name in bundle.manifest.files:
        if name not in weight_files:
            target = box / GRAPHS / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path(name), target)
    text = replace(bundle.manifest, licence=licence).to_json()
    (box / GRAPHS / MANIFEST_NAME).write_text(text, encoding="utf-8")


def _stored(bundle: Bundle, weight_file: str) -> Iterator[tuple[int, np.ndarray]]:
    """(offset, values) of every tensor in a weight file, each once."""
    seen = set()
    for graph in bundle.manifest.graphs:
        if graph.files[1] != weight_file:
            continue
        for offset, array in _external(bundle, graph):
            if offset not in seen:
                seen.add(offset)
                yield offset, array


def _external(bundle: Bundle, graph: GraphSpec) -> Iterator[tuple[int, np.ndarray]]:
    model = load_structure(bundle, graph)
    arrays = initializer_arrays(bundle, graph, model)
    for tensor in model.graph.initializer:
        if external_location(tensor) is not None:
            yield _offset(tensor), arrays[tensor.name]


def _offset(tensor: onnx.TensorProto) -> int:
    return int(next((entry.value for entry in tensor.external_data if entry.key == "offset"), 0))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m vexpress_trt.models.box.pack", description=__doc__)
    parser.add_argument("checkpoints", type=Path, help="folder in the official layout")
    parser.add_argument("--box", type=Path, default=BOX, help="folder to fill (default: the package's own)")
    args = parser.parse_args(arguments)
    try:
        pack(args.checkpoints, args.box)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in args.box.rglob("*") if path.is_file())
    print(f"the box holds {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
