"""Key-point tracks: every honest form loads and is saved as upstream reads it, everything else is one sentence."""

import json
import os
import pickle

import numpy as np
import pytest
from track_files import POINTS, refusal, zip_of

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime import tracks
from vexpress_trt.runtime.tracks import load_track, save_track


def as_numpy_1(pickle_bytes: bytes) -> bytes:
    """The same pickle with the module names of NumPy 1 (protocol 2 writes them as lines, so lengths do not matter)."""
    assert b"numpy._core" in pickle_bytes or b"numpy.core" in pickle_bytes
    return pickle_bytes.replace(b"numpy._core", b"numpy.core")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("container", [zip_of, bytes], ids=["zip", "bare"])
def test_list_of_numpy_arrays_in_every_pickle_protocol(tmp_path, protocol, container):
    path = tmp_path / "kps.pth"
    path.write_bytes(container(pickle.dumps(list(POINTS), protocol)))
    track = load_track(path)
    assert track.points.dtype == np.float32
    np.testing.assert_array_equal(track.points, POINTS)
    assert track.size is None
    assert track.fps is None


def test_arrays_pickled_by_numpy_1_and_2(tmp_path):
    path = tmp_path / "kps.pth"
    both = pickle.dumps(list(POINTS), 2)
    for data in (as_numpy_1(both), both.replace(b"numpy.core", b"numpy._core")):
        path.write_bytes(zip_of(data))
        np.testing.assert_array_equal(load_track(path).points, POINTS)


@pytest.mark.parametrize(
    "dtype, expected",
    [("<f8", "f8"), (">f8", "f8"), (">f4", "f4"), ("f2", "f4"), ("i8", "f4"), ("u1", "f4")],
)
def test_number_types(tmp_path, dtype, expected):
    path = tmp_path / "kps.pth"
    points = (POINTS // 4).astype(dtype)
    path.write_bytes(zip_of(pickle.dumps(points, 2)))
    track = load_track(path)
    assert track.points.dtype == np.dtype(expected)
    np.testing.assert_array_equal(track.points, points.astype(expected))


def test_fortran_order_arrays_nested_lists_and_scalars(tmp_path):
    path = tmp_path / "kps.pth"
    for value in (
        np.asfortranarray(POINTS),
        POINTS.tolist(),
        tuple(POINTS),
        [[tuple(point) for point in frame] for frame in POINTS],
        [list(frame) for frame in POINTS],
        [POINTS[0]] * 7,
    ):
        path.write_bytes(zip_of(pickle.dumps(value, 2)))
        np.testing.assert_array_equal(load_track(path).points, np.array(value, np.float32))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_files_written_by_torch(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    path = tmp_path / "kps.pth"
    whole = torch.from_numpy(POINTS)
    cases = {
        "list of arrays": (list(POINTS), POINTS),
        "tensor": (whole, POINTS),
        "double": (whole.double(), POINTS),
        "list of views of one tensor": (list(whole), POINTS),
        "list of tensors": ([frame.clone() for frame in whole], POINTS),
        "a strided view": (whole[::2].transpose(1, 2).contiguous().transpose(1, 2), POINTS[::2]),
        "an offset view": (whole[3:], POINTS[3:]),
        "parameter": (torch.nn.Parameter(whole), POINTS),
        "bfloat16": (whole.bfloat16(), whole.bfloat16().float().numpy()),
        "half": (whole.half(), whole.half().float().numpy()),
        "integers": (whole.int(), POINTS.astype(np.int32)),
    }
    for name, (value, expected) in cases.items():
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
        np.testing.assert_array_equal(load_track(path).points, expected, err_msg=name)


def test_real_tracks_load_as_torch_loads_them(shared_dir):
    torch = pytest.importorskip("torch")
    paths = sorted(shared_dir.glob("samples/*/*.pth"))
    assert paths
    for path in paths:
        expected = np.array(torch.load(path, weights_only=False))
        np.testing.assert_array_equal(load_track(path).points, expected)


@pytest.mark.parametrize("weights_only", [True, False])
def test_saved_pth_is_read_by_torch_as_upstream_reads_it(tmp_path, weights_only):
    torch = pytest.importorskip("torch")
    path = tmp_path / "kps.pth"
    save_track(path, POINTS, (512, 512), 25.0)
    loaded = torch.tensor(torch.load(path, weights_only=weights_only))
    assert loaded.dtype == torch.float32
    np.testing.assert_array_equal(loaded.numpy(), POINTS)
    np.testing.assert_array_equal(load_track(path).points, POINTS)
    assert os.listdir(tmp_path) == ["kps.pth"]


def test_saved_npy_keeps_size_rate_and_number_type(tmp_path):
    path = tmp_path / "kps.npy"
    save_track(path, POINTS.astype(np.float64) / 3, (640, 360), 29.97)
    track = load_track(path)
    assert (track.size, track.fps) == ((640, 360), 29.97)
    assert track.points.dtype == np.float64
    np.testing.assert_array_equal(track.points, POINTS.astype(np.float64) / 3)
    assert sorted(os.listdir(tmp_path)) == ["kps.npy", "kps.npy.json"]
    save_track(path, POINTS)
    assert (load_track(path).size, load_track(path).fps) == (None, None)


def test_npy_without_sidecar_loads(tmp_path):
    np.save(tmp_path / "kps.npy", POINTS)
    assert load_track(tmp_path / "kps.npy").size is None


def test_a_failed_save_leaves_the_old_track(tmp_path, monkeypatch):
    path = tmp_path / "kps.npy"
    save_track(path, POINTS, (512, 512), 30.0)

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        save_track(path, POINTS + 1, (256, 256), 25.0)
    monkeypatch.undo()
    track = load_track(path)
    np.testing.assert_array_equal(track.points, POINTS)
    assert track.size == (512, 512)
    assert sorted(os.listdir(tmp_path)) == ["kps.npy", "kps.npy.json"]


@pytest.mark.parametrize("name", ["kps.pt", "kps", "kps.npz"])
def test_only_two_suffixes(tmp_path, name):
    with pytest.raises(UserError, match=r"\.pth or \.npy"):
        save_track(tmp_path / name, POINTS)
    (tmp_path / name).write_bytes(b"x")
    assert ".pth or .npy" in refusal(tmp_path / name)


@pytest.mark.parametrize("points", [POINTS[0], POINTS[:, :2], np.full((2, 3, 2), np.nan), np.empty((0, 3, 2))])
def test_save_refuses_what_load_would(tmp_path, points):
    with pytest.raises(UserError):
        save_track(tmp_path / "kps.pth", points)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "value, words",
    [
        ([], "no frames"),
        ({"kps": POINTS}, "holds a dict"),
        ("track", "holds a str"),
        (3, "holds a int"),
        ([POINTS[0], POINTS[1][:2]], "shape [2, 2] for frame 1"),
        ([np.zeros((5, 2), np.float32)], "shape [5, 2] for frame 0"),
        ([POINTS[0], None], "something else for frame 1"),
        ([[["1", "2"]] * 3], "something else for frame 0"),
        (POINTS[..., 0], "[T, 3, 2]"),
        ([POINTS[0], POINTS[1] * np.nan], "not a number in frame 1"),
        ([POINTS[0], POINTS[1] * np.inf], "coordinate inf in frame 1"),
        ([[[1e30, 2.0]] * 3], "coordinate 1e+30 in frame 0"),
        ([[[float("nan"), 2.0]] * 3], "not a number in frame 0"),
        ([[[10**400, 2]] * 3], "something else for frame 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pth_of_another_content(tmp_path, value, words):
    path = tmp_path / "kps.pth"
    path.write_bytes(zip_of(pickle.dumps(value, 2)))
    assert words in refusal(path)


@pytest.mark.parametrize(
    "array, words",
    [
        (POINTS[0], "[T, 3, 2]"),
        (np.zeros((4, 3, 2), complex), "[T, 3, 2]"),
        (np.zeros((4, 3, 2), bool), "[T, 3, 2]"),
        (np.zeros((0, 3, 2), np.float32), "no frames"),
        (np.full((4, 3, 2), np.nan), "not a number in frame 0"),
        (np.array([object()]), "damaged or not an array of numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_npy_of_another_content(tmp_path, array, words):
    path = tmp_path / "kps.npy"
    np.save(path, array, allow_pickle=True)
    assert words in refusal(path)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"width": 512}', '{"width": -1, "height": 5}', '{"width": 1.5, "height": 5}', '{"fps": "30"}', "\xff"],
)
def test_broken_sidecar_is_named(tmp_path, text):
    path = tmp_path / "kps.npy"
    save_track(path, POINTS)
    (tmp_path / "kps.npy.json").write_bytes(text.encode("latin-1"))
    assert "kps.npy.json" in refusal(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("lay", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["a pipe", "a device"])
def test_a_sidecar_without_an_end_is_not_read(tmp_path, lay):
    np.save(tmp_path / "kps.npy", POINTS)
    lay(tmp_path / "kps.npy.json")
    assert "kps.npy.json" in refusal(tmp_path / "kps.npy")


def test_a_name_that_leaves_no_room_for_a_sidecar(tmp_path):
    path = tmp_path / ("x" * 250 + ".npy")
    np.save(path, POINTS)
    assert load_track(path).size is None


def test_missing_empty_folder_and_huge_files(tmp_path, monkeypatch):
    path = tmp_path / "kps.pth"
    assert "does not exist" in refusal(path)
    assert "does not exist" in refusal(tmp_path / ("x" * 300 + ".pth"))
    path.write_bytes(b"")
    assert "is empty" in refusal(path)
    (tmp_path / "folder.pth").mkdir()
    assert "not a file" in refusal(tmp_path / "folder.pth")
    with open(path, "wb") as file:
        file.truncate(tracks.MAX_FILE_BYTES + 1)
    assert "64 MB" in refusal(path)
    monkeypatch.setattr(tracks, "MAX_FRAMES", 6)
    path.write_bytes(zip_of(pickle.dumps(POINTS.tolist(), 2)))
    assert "7 frames" in refusal(path)


def test_sidecar_is_plain_json(tmp_path):
    save_track(tmp_path / "kps.npy", POINTS, (512, 288), 24.0)
    assert json.loads((tmp_path / "kps.npy.json").read_text()) == {"width": 512, "height": 288, "fps": 24.0}
