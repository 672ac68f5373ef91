"""Files are whole or absent."""

import contextlib
import errno
import fcntl
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vexpress_trt.engines import files
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.files import (
    atomic_path,
    remove_leftovers,
    sha256_file,
    target_of,
    temporary_beside,
    user_cache,
)


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".mp4"
        assert temporary.parent == tmp_path
        assert not target.exists()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_what_a_killed_process_leaves_is_known_by_its_name(tmp_path: Path) -> None:
    for name, directory in (("clip.mp4", False), ("no suffix", False), ("a.b.bundle", True)):
        with atomic_path(tmp_path / name, directory=directory) as temporary:
            assert target_of(temporary) == tmp_path / name
            temporary.is_dir() or temporary.touch()
        assert target_of(tmp_path / name) is None
    with temporary_beside(tmp_path / "a.plan") as temporary:
        assert target_of(temporary) == tmp_path / "a.plan" and temporary.suffix == ".plan"


@pytest.mark.parametrize("directory", [False, True])
def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path, directory: bool) -> None:
    target = tmp_path / "x.bundle"
    begin = f"""
import sys
from collections.abc import Callable
from pathlib import Path
from vexpress_trt.engines.files import atomic_path
with atomic_path(Path({str(target)!r}), directory={directory}) as temporary:
    (temporary / "large" if {directory} else temporary).write_text("begun")
    print(temporary.name, flush=True)
    sys.stdin.readline()
"""
    with atomic_path(tmp_path / "other", directory=directory) as other:
        other.is_dir() or other.touch()
        writers = [
            subprocess.Popen([sys.executable, "-c", begin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        living, killed = writers
        temporaries = [tmp_path / writer.stdout.readline().strip() for writer in writers]
        killed.kill()
        killed.wait()
        assert all(path.exists() for path in temporaries)

        remove_leftovers([target])
        assert [path.exists() for path in (other, *temporaries)] == [True, True, False]
        living.communicate("\n")
    assert living.returncode == 0 and target.exists()
    assert sorted(os.listdir(tmp_path)) == ["other", "x.bundle"]


@pytest.mark.parametrize("write", [lambda target: atomic_path(target, directory=True), temporary_beside])
def test_writing_again_removes_what_a_killed_process_left(
    tmp_path: Path, write: Callable[[Path], contextlib.AbstractContextManager[Path]]
) -> None:
    for name in (".x.01234567.tmp.bundle", ".y.01234567.tmp.bundle"):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.lock").touch()
    with write(tmp_path / "x.bundle") as temporary:
        left = {".y.01234567.tmp.bundle", ".y.01234567.tmp.bundle.lock"}
        assert {*os.listdir(tmp_path), temporary.name} == {*left, temporary.name, f"{temporary.name}.lock"}
    assert {*os.listdir(tmp_path), "x.bundle"} == {*left, "x.bundle"}


def test_nothing_is_written_before_who_found_the_lock_free_has_removed_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (lock,) = tmp_path.glob(".*.lock")
        other = os.open(lock, os.O_RDWR)
        flock(other, fcntl.LOCK_EX)

        def remove_it() -> None:
            time.sleep(0.2)
            files.remove(lock.with_suffix(""))
            lock.unlink()
            os.close(other)

        removing.append(threading.Thread(target=remove_it))
        removing[0].start()
        flock(descriptor, operation)

    removing: list[threading.Thread] = []
    monkeypatch.setattr(fcntl, "flock", late)
    with atomic_path(tmp_path / "x", directory=True) as temporary:
        removing[0].join()
        (temporary / "a").write_text("a")
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("failure", [None, ValueError("no"), KeyboardInterrupt()])
def test_a_temporary_file_is_gone_when_its_block_ends(tmp_path: Path, failure: BaseException | None) -> None:
    with contextlib.suppress(ValueError, KeyboardInterrupt), temporary_beside(tmp_path / "a.plan") as temporary:
        temporary.write_text("for a moment")
        assert not (tmp_path / "a.plan").exists()
        if failure is not None:
            raise failure
    assert os.listdir(tmp_path) == []


def test_a_temporary_file_that_the_disk_cannot_hold_is_one_sentence(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(UserError, match="a.plan: the disk is full"), temporary_beside(tmp_path / "a.plan"):
        raise full


@pytest.mark.parametrize("failure", [ValueError("no"), KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("directory", [False, True])
def test_a_failed_block_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, failure: BaseException, directory: bool
) -> None:
    target = tmp_path / "target"
    old = target / "old.txt" if directory else target
    old.parent.mkdir(exist_ok=True)
    old.write_text("old")
    with pytest.raises(type(failure)), atomic_path(target, directory=directory) as temporary:
        (temporary / "new.txt" if directory else temporary).write_text("new")
        raise failure
    assert old.read_text() == "old"
    assert os.listdir(tmp_path) == ["target"]


def test_a_read_only_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(Path, "unlink", refuse)  # also where there is nothing of that name
    with pytest.raises(UserError, match=f"no permission to write in {tmp_path}"), atomic_path(tmp_path / "clip.mp4"):
        pass


@pytest.mark.parametrize("exchange", [True, False], ids=["in one step", "by renames"])
def test_a_folder_replaces_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda new, old: False)
    target = tmp_path / "x.bundle"
    target.mkdir()
    (target / "old").write_text("old")
    with atomic_path(target, directory=True) as temporary:
        (temporary / "new").write_text("new")
    assert os.listdir(target) == ["new"]
    assert os.listdir(tmp_path) == ["x.bundle"]


def test_a_folder_that_came_this_moment_is_replaced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x.bundle"

    def replace(temporary: Path, place: Path) -> None:
        place.mkdir()
        (place / "theirs").write_text("another process was first")
        os.rename(temporary, place)

    monkeypatch.setattr(os, "replace", replace)
    with atomic_path(target, directory=True) as temporary:
        (temporary / "ours").write_text("new")
    assert os.listdir(target) == ["ours"]
    assert os.listdir(tmp_path) == ["x.bundle"]


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission")]
)
def test_a_refused_write_is_a_sentence_with_the_file(tmp_path: Path, code: int, said: str) -> None:
    target = tmp_path / "a.bin"
    with pytest.raises(UserError, match=said) as problem, atomic_path(target) as temporary:
        temporary.write_text("half")
        raise OSError(code, os.strerror(code))
    assert str(target) in str(problem.value)
    assert not os.listdir(tmp_path)


def test_an_error_about_another_file_is_not_blamed_on_the_target(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic_path(tmp_path / "a.bin") as temporary:
        temporary.write_text("half")
        raise PermissionError(errno.EACCES, "no", "/elsewhere/source.wav")


def test_bad_places_are_refused_before_work_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for target, directory, said in [
        (tmp_path / "file" / "none" / "a", False, "not a directory"),
        (tmp_path / "file" / "a", False, "is not a folder"),
        (tmp_path / "folder", False, "a folder of that name exists"),
        (tmp_path / "file", True, "a file of that name exists"),
    ]:
        with pytest.raises(UserError, match=said), atomic_path(target, directory=directory):
            pytest.fail("the block ran")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that refuses folders")
def test_a_folder_that_the_file_system_refuses_is_a_sentence() -> None:
    with pytest.raises(UserError, match="/proc takes no new folders"), atomic_path(Path("/proc/vexpress/a")):
        pytest.fail("the block ran")


def test_a_name_too_long_for_the_temporary_is_a_sentence(tmp_path: Path) -> None:
    for directory in (False, True):
        with (
            pytest.raises(UserError, match="cannot write .*: file name too long"),
            atomic_path(tmp_path / ("x" * 250), directory=directory) as temporary,
        ):
            temporary.write_text("a")


def test_missing_folders_are_made_and_go_again_when_nothing_is_written(tmp_path: Path) -> None:
    target = tmp_path / "none" / "yet" / "a"
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
    assert target.read_text() == "whole"


def test_sha256_of_a_file_longer_than_the_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_CHUNK_BYTES", 7)
    content = bytes(range(100))
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_user_without_a_home_is_told_how_to_name_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "vexpress"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a number that no user has
    with pytest.raises(UserError, match="no home folder .* set HOME or XDG_CACHE_HOME"):
        user_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "vexpress"
