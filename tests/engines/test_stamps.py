"""What a bundle from a stranger may lay where its hashes are remembered."""

import os
from pathlib import Path

import pytest

from vexpress_trt.engines.stamps import file_hashes

STAMP = ".verified.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    root.mkdir()
    (root / "data").write_bytes(b"data")
    return root


@pytest.mark.timeout(20)
@pytest.mark.parametrize("lay", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["a pipe", "a device"])
def test_what_has_no_end_is_not_read(root: Path, lay) -> None:
    lay(root / STAMP)
    hashes = file_hashes(root, ["data"])
    assert file_hashes(root, ["data"]) == hashes
    assert (root / STAMP).is_file() and not (root / STAMP).is_symlink()


@pytest.mark.parametrize("name", [STAMP, f"{STAMP}.{os.getpid()}.tmp"], ids=["its own", "its temporary's"])
def test_no_name_leads_to_another_file(root: Path, name: str) -> None:
    other = root.with_name("precious")
    other.write_text("precious")
    (root / name).symlink_to(other)
    file_hashes(root, ["data"])
    assert other.read_text() == "precious"
