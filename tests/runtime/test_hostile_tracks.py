"""Track files that lie: no pickle ever executes, no size that is claimed fills the memory."""

import builtins
import importlib
import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from track_files import POINTS, refusal, zip_of

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime.tracks import load_track


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
    assert "kps.pth" in refusal(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"}", b"Ns."), (b"}(", b"Nu."), (b"(", b"Nd."), (b"cnumpy\ndtype\n", b"\x85R.")],
    ids=["SETITEM", "SETITEMS", "DICT", "dtype"],
)
def test_a_tuple_nested_too_deeply_to_be_hashed_is_refused(tmp_path, before, after):
    path = tmp_path / "kps.pth"
    path.write_bytes(b"\x80\x02" + before + b")" + b"\x85" * 1_000_000 + after)
    code = "import sys; from track_files import refusal; from pathlib import Path; print(refusal(Path(sys.argv[1])))"
    helpers = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    done = subprocess.run([sys.executable, "-c", code, path], env=helpers, capture_output=True, text=True, check=False)
    assert "was not read" in done.stdout, f"status {done.returncode}"  # a crash would have ended this process


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
        assert "kps.pth" in refusal(path)


def test_flipped_bytes_give_a_track_or_a_refusal(tmp_path):
    path = tmp_path / "kps.pth"
    whole = bytearray(pickle.dumps(list(POINTS[:2]), 2))
    for position in range(len(whole)):
        for value in (0, 0x28, 0x2E, 0x62, 0x52, 0xFF):
            damaged = bytearray(whole)
            damaged[position] = value
            path.write_bytes(damaged)
            try:
                assert load_track(path).points.shape[1:] == (3, 2)
            except UserError as problem:
                assert "kps.pth" in str(problem)


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


def test_npy_whose_header_breaks_the_parser(tmp_path):
    path = tmp_path / "kps.npy"
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (((\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(UserError, match="damaged"):
        load_track(path)
