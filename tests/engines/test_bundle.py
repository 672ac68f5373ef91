"""A bundle is opened whole or refused with the name of what is wrong; it is written whole or not at all."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vexpress_trt.engines import stamps
from vexpress_trt.engines.bundle import ENGINES_FOLDER, Bundle, BundleWriter, graph_bytes, write_bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import MANIFEST_NAME, FileRecord, ModelConfig

DATA = "onnx/fp32/vae_decoder.data"
GRAPH = "onnx/fp32/vae_decoder.onnx"


def _flip(path: Path, *, keep_time: bool = False) -> None:
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("file", [DATA, GRAPH])
def test_a_flipped_bit_is_found_and_its_file_named(bundle: Bundle, file: str) -> None:
    _flip(bundle.root / file)
    with pytest.raises(UserError, match=f"{file} is damaged"):
        Bundle.open(bundle.root)


def test_verify_does_not_trust_what_is_remembered(bundle: Bundle) -> None:
    _flip(bundle.root / DATA, keep_time=True)
    Bundle.open(bundle.root)  # looks unchanged
    with pytest.raises(UserError, match=f"{DATA} is damaged"):
        Bundle.open(bundle.root, verify=True)


def test_a_shortened_file_is_named_with_both_sizes(bundle: Bundle) -> None:
    path = bundle.root / DATA
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{DATA} is damaged: it has 63 bytes instead of 64"):
        Bundle.open(bundle.root)


def test_a_missing_file_is_named(bundle: Bundle) -> None:
    (bundle.root / DATA).unlink()
    with pytest.raises(UserError, match=f"{DATA} is missing from the bundle"):
        Bundle.open(bundle.root)


def test_a_link_out_of_the_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.root / DATA
    outside = tmp_path / "outside.data"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(UserError, match="link that leaves the bundle"):
        Bundle.open(bundle.root)


def test_unchanged_files_are_hashed_once(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    original = stamps.sha256_file
    monkeypatch.setattr(stamps, "sha256_file", lambda path: hashed.append(path) or original(path))
    Bundle.open(bundle.root)
    assert not hashed
    os.utime(bundle.root / DATA, ns=(1, 1))
    Bundle.open(bundle.root)
    assert hashed == [bundle.root / DATA]


def test_a_copy_of_a_bundle_is_the_same_bundle(bundle: Bundle, tmp_path: Path) -> None:
    moved = tmp_path / "moved.bundle"
    bundle.root.rename(moved)
    assert Bundle.open(moved).manifest == bundle.manifest


def test_what_is_no_bundle_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name, said in [("none", "no bundle at"), ("file", "a bundle is a folder"), ("folder", "has no manifest.json")]:
        with pytest.raises(UserError, match=said):
            Bundle.open(tmp_path / name)
    (tmp_path / "folder" / MANIFEST_NAME).write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        Bundle.open(tmp_path / "folder")


def test_a_path_that_cannot_be_looked_up_is_one_sentence(tmp_path: Path) -> None:
    endless = tmp_path / ("x" * 300)
    with pytest.raises(UserError, match=f"cannot read {endless}: file name too long"):
        Bundle.open(endless)
    with pytest.raises(UserError, match=f"cannot read {endless}"), write_bundle(endless):
        pytest.fail("the block ran")


def test_a_file_that_may_not_be_read_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(stamps, "sha256_file", refuse)
    with pytest.raises(UserError, match=f"cannot read {bundle.root / GRAPH}: permission denied"):
        Bundle.open(bundle.root, verify=True)


def test_a_graph_that_is_not_there_says_what_is(bundle: Bundle) -> None:
    assert bundle.graph("vae_decoder", "fp32").path == GRAPH
    with pytest.raises(UserError, match="has vae_decoder in fp32 only; add it with .*--precision fp16"):
        bundle.graph("vae_decoder", "fp16")
    with pytest.raises(UserError, match=r"no graph reference \(it has: vae_decoder\)"):
        bundle.graph("reference", "fp32")


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b"])
def test_no_path_leads_out_of_a_bundle(bundle: Bundle, path: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        bundle.path(path)
    with pytest.raises(ValueError, match="not a path inside"), write_bundle(bundle.root.parent / "y") as writer:
        writer.path(path)


def test_a_precision_is_added_without_writing_the_others_again(
    bundle: Bundle, make_bundle: Callable[..., Bundle]
) -> None:
    inode = (bundle.root / DATA).stat().st_ino
    (bundle.root / ENGINES_FOLDER).mkdir()
    (bundle.root / ENGINES_FOLDER / "plan").write_text("built")
    both = make_bundle(bundle.root, precisions=("fp16",), keep=bundle)
    assert both.precisions == ("fp32", "fp16")
    assert (both.root / DATA).stat().st_ino == inode
    assert (both.root / ENGINES_FOLDER / "plan").read_text() == "built"


def test_engines_that_are_built_meanwhile_stay(bundle: Bundle, make_bundle: Callable[..., Bundle], monkeypatch) -> None:
    engines = bundle.root / ENGINES_FOLDER / "key"
    engines.mkdir(parents=True)
    for name in ("same", "built again"):
        (engines / name).write_text("old")
    (engines / "renamed at this moment").symlink_to("nowhere")
    inode = (engines / "same").stat().st_ino

    def build(writer: BundleWriter, **about: object) -> None:
        (engines / "built again").unlink()
        (engines / "built again").write_text("newer")
        (engines / "another").mkdir()
        (engines / "another" / "plan").write_text("new")
        finish(writer, **about)

    finish = BundleWriter.finish
    monkeypatch.setattr(BundleWriter, "finish", build)
    make_bundle(bundle.root, precisions=("fp16",), keep=bundle)
    assert (engines / "same").stat().st_ino == inode
    assert (engines / "built again").read_text() == "newer"
    assert (engines / "another" / "plan").read_text() == "new"


def test_writing_a_carried_file_leaves_the_previous_bundle_alone(bundle: Bundle) -> None:
    with pytest.raises(KeyboardInterrupt), write_bundle(bundle.root, keep=bundle) as writer:
        before = writer.path(DATA).read_bytes()
        writer.path(DATA).write_bytes(b"new")
        raise KeyboardInterrupt
    assert (bundle.root / DATA).read_bytes() == before


@pytest.mark.parametrize("there_before", [True, False])
def test_a_bundle_that_came_meanwhile_is_not_replaced(
    make_bundle: Callable[..., Bundle], model_config: ModelConfig, tmp_path: Path, there_before: bool
) -> None:
    target = tmp_path / "x.bundle"
    keep = make_bundle(target) if there_before else None
    with (
        pytest.raises(UserError, match="another program wrote the bundle .*: run the command again"),
        write_bundle(target, keep=keep) as writer,
    ):
        make_bundle(target, precisions=("bf16",), keep=keep)
        writer.finish(
            producer="p", model=model_config, graphs=(), licence="l", provenance={}, networks={}, random_weights=True
        )
    assert "bf16" in Bundle.open(target).precisions
    assert os.listdir(tmp_path) == ["x.bundle"]


def test_test_vectors_are_not_of_a_graphs_size(bundle: Bundle) -> None:
    spec = bundle.graph("vae_decoder", "fp32")
    size = sum((bundle.root / file).stat().st_size for file in (GRAPH, DATA))
    vectors = "parity/vae_decoder.npz"
    files = bundle.manifest.files | {vectors: FileRecord("0" * 64, 4711)}
    checked = replace(bundle, manifest=replace(bundle.manifest, files=files))
    assert graph_bytes(checked, replace(spec, files=(*spec.files, vectors))) == graph_bytes(bundle, spec) == size


def test_an_unfinished_or_failed_bundle_does_not_appear(tmp_path: Path) -> None:
    target = tmp_path / "x.bundle"
    with pytest.raises(ValueError, match="was not finished"), write_bundle(target) as writer:
        writer.path("onnx/a").write_text("a")
    with pytest.raises(KeyboardInterrupt), write_bundle(target) as writer:
        writer.path("onnx/a").write_text("a")
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)


def test_a_listed_file_that_was_not_written_is_named(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle.manifest
    with pytest.raises(ValueError, match=f"listed but not written: {GRAPH}"), write_bundle(tmp_path / "y") as writer:
        writer.finish(
            producer="p", model=manifest.model, graphs=manifest.graphs, licence="l", provenance={}, networks={},
            random_weights=True,
        )  # fmt: skip


def test_a_folder_of_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("precious")
    with pytest.raises(UserError, match="not a bundle"), write_bundle(tmp_path / "photos"):
        pytest.fail("the block ran")
    assert (tmp_path / "photos" / "a.jpg").read_text() == "precious"


def test_a_read_only_bundle_is_remembered_in_the_cache(bundle: Bundle, cache_folder: Path, monkeypatch) -> None:
    stamp = bundle.root / ".verified.json"
    stamp.unlink()
    stamp.mkdir()  # nothing can be written in its place, whoever runs this test
    Bundle.open(bundle.root)
    monkeypatch.setattr(stamps, "sha256_file", lambda path: pytest.fail("hashed again"))
    Bundle.open(bundle.root)
    assert len(list(cache_folder.rglob("*.json"))) == 1


@pytest.mark.parametrize("content", ["", "[]", '{"onnx/fp32/vae_decoder.data": 3}', "[" * 100_000])
def test_a_damaged_stamp_is_as_none(bundle: Bundle, content: str) -> None:
    (bundle.root / ".verified.json").write_text(content)
    assert Bundle.open(bundle.root).manifest == bundle.manifest
    assert set(json.loads((bundle.root / ".verified.json").read_text())) == {DATA, GRAPH}
