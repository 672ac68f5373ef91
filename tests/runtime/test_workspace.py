"""What grows with the clip is in memory, or in temporary files that always go."""

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
    with Workspace(on_disk=on_disk) as workspace:
        array = workspace.allocate((4, 5), np.dtype(np.float16))
        array[...] = 7
        kept = workspace.keep(np.arange(6, dtype=np.int64).reshape(2, 3))
        assert array.shape == (4, 5)
        assert (array == 7).all()
        assert kept.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_on_disk_means_files_and_they_go_even_after_an_error(temporary_folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Workspace(on_disk=True) as workspace:
        workspace.allocate((10,), np.dtype(np.float32))
        assert [path.stat().st_size for path in temporary_folder.rglob("*.bin")] == [40]
        raise KeyboardInterrupt
    assert list(temporary_folder.iterdir()) == []


@pytest.mark.parametrize("on_disk", [False, True])
def test_spooling_gives_the_same_pairs(on_disk: bool) -> None:
    with Workspace(on_disk=on_disk) as workspace:
        spooled = list(workspace.spool(ITEMS, count=3))
    assert [index for index, _ in spooled] == [0, 1, 2]
    assert all((array == index).all() for index, array in spooled)


@pytest.mark.parametrize(("on_disk", "expected"), [(False, 1), (True, 3)])
def test_on_disk_everything_is_taken_before_the_first_is_given(on_disk: bool, expected: int) -> None:
    taken = []

    def source():
        for item in ITEMS:
            taken.append(item)
            yield item

    with Workspace(on_disk=on_disk) as workspace:
        next(workspace.spool(source(), count=3))
        assert len(taken) == expected


def test_a_full_disk_is_a_sentence_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_reserve", full)
    with Workspace(on_disk=True) as workspace, pytest.raises(UserError, match="no room for 4 MiB.*TMPDIR"):
        workspace.allocate((2**20,), np.dtype(np.float32))
