"""The bundle of the model in the box, put together from the checkpoints beside it when it is first asked for.

What is shipped: `checkpoints/` in the official layout, in half precision; `bundle/`, the exported graphs in FP32
without their weight files; `weights.json`, which says where in the checkpoints each weight lies; `rest.bin`, the few
values that are not in them. No torch is needed.
"""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import atomic_path, user_cache
from vexpress_trt.engines.manifest import MANIFEST_NAME
from vexpress_trt.models.box.weights import Piece, assemble

BOX = Path(__file__).parent
CHECKPOINTS, GRAPHS, PLACES, REST = "checkpoints", "bundle", "weights.json", "rest.bin"
# What the model in the box was trained for; the request's own defaults are those of the official model.
SETTINGS = {"fps": 25.0, "guidance_scale": 2.0, "reference_attention_weight": 0.95, "audio_attention_weight": 3.0}


class DamagedBoxError(UserError):
    """What is shipped is not what was packed."""


def is_shipped(box: Path = BOX) -> bool:
    """Whether this copy of the package carries trained weights."""
    return (box / GRAPHS / MANIFEST_NAME).is_file()


def taken_for_want_of_another() -> str:
    """What whoever named no bundle has to know."""
    trained_for = " ".join(f"--{name} {value:g}" for name, value in SETTINGS.items())
    knows = "drawn faces of 128x128 pixels only"
    return f"the model in the box is taken, which knows {knows} and was trained for {trained_for}"


def shipped_bundle(box: Path = BOX) -> Path:
    """The bundle's folder in the user's cache; it is made there when it is missing or damaged.

    Raises UserError where this copy carries no model, or the cache folder cannot be written.
    """
    if not is_shipped(box):
        raise UserError("this copy of vexpress carries no trained model: name a bundle with --bundle")
    identity = hashlib.sha256((box / GRAPHS / MANIFEST_NAME).read_bytes()).hexdigest()[:16]
    target = user_cache() / "models" / f"box-{identity}.bundle"
    try:
        Bundle.open(target)
    except (UserError, OSError):
        _unpack_into_cache(target, box)
    return target


def _unpack_into_cache(target: Path, box: Path) -> None:
    try:
        unpack(target, box)
    except DamagedBoxError:
        raise
    except UserError as problem:
        raise UserError(
            f"the model in the box could not be put together: {problem} (XDG_CACHE_HOME names the cache folder)"
        ) from None


def unpack(target: Path, box: Path = BOX) -> Bundle:
    """Write the complete bundle to `target`, replacing what is there once all hashes are right.

    Raises DamagedBoxError where a shipped file is missing or damaged, UserError where `target` cannot be written.
    """
    with atomic_path(target, directory=True) as folder:
        try:
            _put_together(folder, box)
            Bundle.open(folder, verify=True)
        except (FileNotFoundError, KeyError, TypeError, ValueError, UserError) as problem:
            raise DamagedBoxError(f"the weights in {box} are damaged: install vexpress-trt again") from problem
    return Bundle.open(target)


def _put_together(folder: Path, box: Path) -> None:
    """Fill `folder` with what `box` holds; its hashes are not checked."""
    places = json.loads((box / PLACES).read_text(encoding="utf-8"))
    shutil.copytree(box / GRAPHS, folder, dirs_exist_ok=True)
    sources = {name: (box / name).read_bytes() for name in places["sources"]}
    for name, file in places["files"].items():
        assemble(folder / name, file["size"], (Piece(*entry) for entry in file["pieces"]), sources)


def places_text(sources: list[str], files: dict[str, tuple[int, list[Piece]]]) -> str:
    """The content of `weights.json`: for each weight file its size and its pieces."""
    lines = []
    for name, (size, pieces) in files.items():
        rows = ",\n".join("   " + json.dumps(list(asdict(piece).values())) for piece in pieces)
        lines.append(f'  {json.dumps(name)}: {{"size": {size}, "pieces": [\n{rows}\n  ]}}')
    return f'{{"sources": {json.dumps(sources)},\n "files": {{\n' + ",\n".join(lines) + "\n }\n}\n"
