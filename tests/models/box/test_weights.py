"""A bundle put together again from the checkpoints it was exported from is the same bundle, byte for byte."""

import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.models.box.box import CHECKPOINTS, REST, is_shipped, shipped_bundle, unpack
from vexpress_trt.models.box.pack import describe
from vexpress_trt.models.box.weights import assemble, find_pieces


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, golden_bundle: Path, golden_dir: Path) -> Path:
    """A box that holds the golden model."""
    folder = tmp_path_factory.mktemp("box")
    shutil.copytree(golden_dir / "model_ckpts", folder / CHECKPOINTS)
    describe(Bundle.open(golden_bundle), folder, "free")
    return folder


def test_every_file_is_the_exported_one(box: Path, golden_bundle: Path, tmp_path: Path) -> None:
    made = unpack(tmp_path / "made.bundle", box)
    exported = Bundle.open(golden_bundle)
    assert made.manifest == replace(exported.manifest, licence="free")
    for name in exported.manifest.files:
        assert made.path(name).read_bytes() == exported.path(name).read_bytes(), name


def test_hardly_any_weight_is_stored_twice(box: Path, golden_bundle: Path) -> None:
    weights = sum(path.stat().st_size for path in golden_bundle.rglob("*.data"))
    assert (box / REST).stat().st_size < 0.05 * weights
    assert not list(box.rglob("*.data"))


def test_the_bundle_is_made_once_and_anew_when_it_is_damaged(box: Path) -> None:
    assert is_shipped(box)
    bundle = shipped_bundle(box)
    manifest = bundle / "manifest.json"
    made = manifest.stat().st_mtime_ns
    assert shipped_bundle(box) == bundle and manifest.stat().st_mtime_ns == made
    (bundle / "onnx/fp32/denoiser.data").write_bytes(b"damaged")
    assert shipped_bundle(box) == bundle
    Bundle.open(bundle, verify=True)


def test_a_precision_that_is_not_shipped_is_exported_to_a_bundle_of_the_users_own(box: Path) -> None:
    """Advice to add to the cache folder would be lost with it."""
    bundle = Bundle.open(shipped_bundle(box))
    with pytest.raises(UserError) as refused:
        bundle.graph("vae_decoder", "fp16")
    said = str(refused.value)
    assert said.startswith("the model in the box has vae_decoder in fp32 only: choose that, or ")
    assert str(bundle.root) not in said
    command = shlex.split(said.split("`")[1])
    assert (Path(command[command.index("--checkpoints") + 1]) / "v-express" / "denoising_unet.bin").is_file()
    assert command[-8:] == "--precision fp16 --image_width 128 --image_height 128 --context_frames 12".split()


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda file: file.write_bytes(file.read_bytes()[:1000]), id="truncated"),
        pytest.param(_flip, id="flipped"),
        pytest.param(Path.unlink, id="missing"),
    ],
)
def test_damaged_checkpoints_are_refused_and_leave_what_was_there(
    box: Path, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    damaged, target = tmp_path / "box", tmp_path / "made.bundle"
    shutil.copytree(box, damaged)
    unpack(target, damaged)
    damage(damaged / CHECKPOINTS / "v-express" / "denoising_unet.bin")
    with pytest.raises(UserError, match="damaged: install vexpress-trt again"):
        unpack(target, damaged)
    Bundle.open(target, verify=True)
    assert {path.name for path in tmp_path.iterdir()} == {"box", "made.bundle"}


def test_a_cache_that_cannot_be_written_is_named(box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write .*XDG_CACHE_HOME names the cache folder"):
        shipped_bundle(box)


def test_a_copy_without_weights_says_so(tmp_path: Path) -> None:
    assert not is_shipped(tmp_path)
    with pytest.raises(UserError, match="carries no trained model"):
        shipped_bundle(tmp_path)


def test_halves_turned_and_cut_tensors_are_found(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float16)
    source = b"head" + values.tobytes() + b"tail"
    wanted = [
        (0, values.astype(np.float32)),
        (320, np.ascontiguousarray(values.transpose(1, 2, 0))),
        (512, values[3:].astype(np.float32)),
        (1024, np.array([1.1, 2.2, 3.3], np.float32)),
    ]
    pieces, rest = find_pieces(wanted, {"file": source})
    assert [offset for offset, _ in rest] == [1024]
    assemble(tmp_path / "weights", 1024, pieces, {"file": source})
    content = (tmp_path / "weights").read_bytes()
    for offset, array in wanted[:-1]:
        assert content[offset : offset + array.nbytes] == array.tobytes()
    assert content[288:320] == bytes(32)
