"""Key-point tracks: every honest form loads, everything else is one sentence, and no pickle ever executes."""

import builtins
import importlib
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime import tracks
from vexpress_trt.runtime.tracks import load_track, save_track

POINTS = (np.arange(7 * 6).reshape(7, 3, 2) * 7.3 + 1.1).astype(np.float32)


def refusal(path) -> str:
    with pytest.raises(UserError) as caught:
        load_track(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


def zip_of(pickle_bytes: bytes, **entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle_bytes)
        archive.writestr("archive/version", b"3\n")
        for name, data in entries.items():
            archive.writestr("archive/" + name.replace("__", "/"), data)
    return buffer.getvalue()


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


class Marker:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hostile_values(canary):
    command = f"{sys.executable} -c \"open({str(canary)!r}, 'w')\""
    return {
        "os.system": Marker(os.system, command),
        "builtins.eval": Marker(builtins.eval, f"open({str(canary)!r}, 'w')"),
        "builtins.exec": Marker(builtins.exec, f"open({str(canary)!r}, 'w')"),
        "builtins.open": Marker(builtins.open, str(canary), "w"),
        "builtins.getattr": Marker(getattr, Marker(importlib.import_module, "os"), "system"),
        "subprocess.call": Marker(subprocess.call, ["touch", str(canary)]),
        "numpy.load": Marker(np.load, str(canary)),
        "nested in a list of frames": [POINTS[0], [POINTS[1], Marker(os.system, command)]],
        "as a dict value": {"kps": Marker(os.system, command)},
        "as an argument of an admitted function": Marker(np.dtype, Marker(os.system, command)),
    }


@pytest.mark.parametrize("name", hostile_values("x"))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_never_executes(tmp_path, name, protocol):
    canary = tmp_path / "canary"
    data = pickle.dumps(hostile_values(canary)[name], protocol)
    path = tmp_path / "kps.pth"
    for content in (data, zip_of(data), legacy_of(data)):
        path.write_bytes(content)
        assert "may be harmful" in refusal(path)
        assert not canary.exists()
    # The same bytes do execute where they are trusted, so the canary can fail.
    if name == "builtins.open":
        pickle.loads(data).close()
        assert canary.exists()


def legacy_of(object_pickle: bytes) -> bytes:
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return head + object_pickle + pickle.dumps([], 2)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"(iposix\nsystem\n.",  # INST
        b"\x80\x02(cnumpy\nndarray\no.",  # OBJ
        b"\x80\x02\x82\x01.",  # EXT1
        b"Pstorage\n.",  # PERSID
        b"\x80\x02cnumpy\nndarray\n}b.",  # BUILD on something that is not a record
        b"\x80\x02cnumpy\nndarray\n)R.",  # call of a name without a constructor
        b"\x80\x02r\xff\xff\xff\x7f.",  # store to a giant memo slot with nothing to store
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # giant memo slot
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",  # giant string
        b"\x80\x02]a.",  # append without an item
        b"\x80\x02e.",  # appends without a mark
        b"\x80\x02K\x01",  # no end
        b"\x80\x02.",  # nothing
        b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.",  # bytes of a given length
    ],
)
def test_odd_opcodes_are_refused(tmp_path, data):
    path = tmp_path / "kps.pth"
    path.write_bytes(data)
    refusal(path)


def test_arrays_that_claim_more_than_they_hold_are_refused(tmp_path):
    path = tmp_path / "kps.pth"
    honest = pickle.dumps(POINTS, 2)
    assert b"K\x07K\x03K\x02\x87" in honest
    path.write_bytes(honest.replace(b"K\x07K\x03K\x02\x87", b"J\xff\xff\xff\x7fK\x03K\x02\x87"))
    assert "bytes its shape needs" in refusal(path) or "larger than" in refusal(path)
    path.write_bytes(pickle.dumps([np.array([object()], dtype=object)], 2))
    refusal(path)
    path.write_bytes(pickle.dumps([np.array(["left", "right"])], 2))
    assert "not of numbers" in refusal(path)


def tensor_file(offset: int = 0, strides: tuple[int, int, int] = (6, 2, 1)) -> bytes:
    """A zip file as torch writes it for a [7, 3, 2] float32 tensor, with an offset and strides of one's choice."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x2atQ"
    view = b"K%cK\x07K\x03K\x02\x87K%cK%cK%c\x87" % (offset, *strides)
    data = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"\x89ccollections\nOrderedDict\n)RtR."
    return zip_of(data, data__0=POINTS.tobytes())


@pytest.mark.parametrize(
    "offset, strides", [(1, (6, 2, 1)), (0, (7, 2, 1)), (0, (6, 2, 2)), (0, (6, 3, 1)), (255, (0, 0, 0))]
)
def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path, offset, strides):
    path = tmp_path / "kps.pth"
    path.write_bytes(tensor_file())
    np.testing.assert_array_equal(load_track(path).points, POINTS)
    path.write_bytes(tensor_file(offset, strides))
    assert "beyond its storage" in refusal(path)


def test_many_views_of_one_small_storage_cannot_fill_the_memory(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "kps.pth"
    torch.save([torch.zeros(1).expand(400_000, 3, 2) for _ in range(50)], path)
    assert "larger than a key-point track can be" in refusal(path)


def test_shared_lists_do_not_multiply(tmp_path):
    path = tmp_path / "kps.pth"
    value = 1.0
    for _ in range(6):
        value = [value] * 1000
    path.write_bytes(pickle.dumps(value, 2))
    assert "frame 0" in refusal(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_truncation_is_refused(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    path = tmp_path / "kps.pth"
    torch.save(torch.from_numpy(POINTS), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for length in range(1, len(whole), 7):
        path.write_bytes(whole[:length])
        refusal(path)


def test_flipped_bytes_give_a_track_or_a_refusal(tmp_path):
    path = tmp_path / "kps.pth"
    whole = bytearray(pickle.dumps(list(POINTS[:2]), 2))
    for position in range(len(whole)):
        for value in (0, 0x28, 0x2E, 0x62, 0x52, 0xFF):
            damaged = bytearray(whole)
            damaged[position] = value
            path.write_bytes(damaged)
            try:
                load_track(path)
            except UserError:
                continue


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


def test_npy_whose_header_claims_more_than_the_file_holds(tmp_path):
    path = tmp_path / "kps.npy"
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3, 2)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"\0" * 24)
    assert "damaged" in refusal(path)
    np.savez(tmp_path / "kps", POINTS)
    (tmp_path / "kps.npz").rename(path)
    assert "npz" in refusal(path)
    path.write_bytes(b"not an array")
    assert "damaged" in refusal(path)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"width": 512}', '{"width": -1, "height": 5}', '{"width": 1.5, "height": 5}', '{"fps": "30"}', "\xff"],
)
def test_broken_sidecar_is_named(tmp_path, text):
    path = tmp_path / "kps.npy"
    save_track(path, POINTS)
    (tmp_path / "kps.npy.json").write_bytes(text.encode("latin-1"))
    assert "kps.npy.json" in refusal(path)


def test_missing_empty_folder_and_huge_files(tmp_path, monkeypatch):
    path = tmp_path / "kps.pth"
    assert "does not exist" in refusal(path)
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


def test_a_zip_bomb_is_refused(tmp_path):
    path = tmp_path / "kps.pth"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([b"\0" * (8 << 20)], 2))
    path.write_bytes(buffer.getvalue())
    assert len(buffer.getvalue()) < 1 << 20
    assert "unpacks to more" in refusal(path)


def test_a_zip_without_a_pickle_and_an_encrypted_flag(tmp_path):
    path = tmp_path / "kps.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    assert "data.pkl" in refusal(path)
    data = bytearray(zip_of(pickle.dumps(POINTS, 2)))
    central = data.rindex(b"PK\x01\x02", 0, data.rindex(b"PK\x01\x02"))
    data[central + 8] |= 1
    path.write_bytes(data)
    assert "damaged" in refusal(path)


def test_sidecar_is_plain_json(tmp_path):
    save_track(tmp_path / "kps.npy", POINTS, (512, 288), 24.0)
    assert json.loads((tmp_path / "kps.npy.json").read_text()) == {"width": 512, "height": 288, "fps": 24.0}
