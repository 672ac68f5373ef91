"""What grows with the clip is in memory, or in temporary files that always go, after kill -9 too."""

from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime import workspace as module
from vexpress_trt.runtime.workspace import Workspace

ITEMS = [(index, np.full((2, 3), index, np.float32)) for index in (0, 1, 2)]


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("on_disk", [False, True])
def test_arrays_keep_what_is_written(on_disk: bool) -> None:
    workspace = Workspace(on_disk=on_disk)
    array = workspace.allocate((4, 5), np.dtype(np.float16))
    array[...] = 7
    kept = workspace.keep(np.arange(6, dtype=np.int64).reshape(2, 3))
    assert array.shape == (4, 5)
    assert (array == 7).all()
    assert kept.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs a system that lists what is mapped")
def test_on_disk_means_a_file_there_that_has_no_name_to_be_left_behind(temporary_folder: Path) -> None:
    array = Workspace(on_disk=True).allocate((10,), np.dtype(np.float32))
    assert f"{temporary_folder}/" in Path("/proc/self/maps").read_text()
    assert list(temporary_folder.iterdir()) == []
    del array
    assert f"{temporary_folder}/" not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("on_disk", [False, True])
def test_spooling_gives_the_same_pairs(on_disk: bool) -> None:
    spooled = list(Workspace(on_disk=on_disk).spool(ITEMS, count=3))
    assert [index for index, _ in spooled] == [0, 1, 2]
    assert all((array == index).all() for index, array in spooled)


@pytest.mark.parametrize(("on_disk", "expected"), [(False, 1), (True, 3)])
def test_on_disk_everything_is_taken_before_the_first_is_given(on_disk: bool, expected: int) -> None:
    taken = []

    def source():
        for item in ITEMS:
            taken.append(item)
            yield item

    next(Workspace(on_disk=on_disk).spool(source(), count=3))
    assert len(taken) == expected


def test_a_full_disk_is_a_sentence_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_reserve", full)
    with pytest.raises(UserError, match="no room for 4 MiB.*TMPDIR"):
        Workspace(on_disk=True).allocate((2**20,), np.dtype(np.float32))
