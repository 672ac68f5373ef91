"""Weight files and configurations from strangers."""

import os
import pickle
import zipfile

import pytest

pytest.importorskip("torch", reason="needs the export extra")

import torch
from safetensors.torch import save_file

from vexpress_trt.engines.errors import UserError
from vexpress_trt.export.tensor_files import read_json, read_tensors

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3).half(), "a.bias": torch.ones(2)}


class Payload:
    """Unpickled freely, it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def same(tensors) -> bool:
    return tensors.keys() == STATE.keys() and all(
        torch.equal(tensors[name], STATE[name]) and tensors[name].dtype == STATE[name].dtype for name in STATE
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_state_dicts_of_new_and_old_torch_keep_their_dtypes(tmp_path, zipped):
    torch.save(STATE, tmp_path / "w.bin", _use_new_zipfile_serialization=zipped)
    assert same(read_tensors(tmp_path / "w.bin"))


def test_safetensors_are_read(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    assert same(read_tensors(tmp_path / "w.safetensors"))


def test_parameters_come_as_plain_tensors(tmp_path):
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "w.bin")
    assert not read_tensors(tmp_path / "w.bin")["w"].requires_grad


def test_tensors_are_mapped_from_the_file_not_copied(tmp_path):
    values = torch.full((1000,), 1.5)
    torch.save({"w": values}, tmp_path / "w.bin")
    tensor = read_tensors(tmp_path / "w.bin")["w"]
    position = (tmp_path / "w.bin").read_bytes().index(values.numpy().tobytes())
    with open(tmp_path / "w.bin", "r+b") as file:
        file.seek(position)
        file.write(b"\0\0\x80\x3f")  # 1.0
    assert tensor[0] == 1.0


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_never_runs(tmp_path, zipped):
    trap = tmp_path / "trap"
    torch.save({"w": Payload(trap)}, tmp_path / "w.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"w\.bin .*would run posix\.mkdir.*not executed") as caught:
        read_tensors(tmp_path / "w.bin")
    assert not trap.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_bare_pickle_never_runs(tmp_path, protocol):
    trap = tmp_path / "trap"
    (tmp_path / "w.bin").write_bytes(pickle.dumps({"w": Payload(trap)}, protocol))
    with pytest.raises(UserError, match=r"w\.bin") as caught:
        read_tensors(tmp_path / "w.bin")
    assert not trap.exists() and "\n" not in str(caught.value)


def damaged_files():
    def half_zip(path):
        torch.save(STATE, path)
        path.write_bytes(path.read_bytes()[:-400])

    def half_legacy(path):
        torch.save(STATE, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-8])

    def scrambled(path):
        torch.save(STATE, path)
        content = path.read_bytes()
        start = content.index(b"data.pkl") + 70
        path.write_bytes(content[:start] + b"\xff" * 30 + content[start + 30 :])

    def compressed(path):
        torch.save(STATE, path)
        with zipfile.ZipFile(path) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)

    return {
        "empty": lambda path: path.write_bytes(b""),
        "truncated zip": half_zip,
        "truncated legacy": half_legacy,
        "scrambled": scrambled,
        "compressed": compressed,
        "web page": lambda path: path.write_text("<html>404</html>"),
        "pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        "list": lambda path: torch.save([torch.ones(1)], path),
        "nothing": lambda path: torch.save({}, path),
        "nested": lambda path: torch.save({"state_dict": STATE}, path),
        "whole module": lambda path: torch.save(torch.nn.Linear(2, 2), path),
        "integers": lambda path: torch.save({"w": torch.ones(2, dtype=torch.int64)}, path),
        "sparse": lambda path: torch.save({"w": torch.ones(2, 2).to_sparse()}, path),
    }


@pytest.mark.parametrize("kind", damaged_files())
def test_anything_else_is_one_sentence_that_names_the_file(tmp_path, kind):
    path = tmp_path / "w.bin"
    damaged_files()[kind](path)
    with pytest.raises(UserError, match=r"w\.bin") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 and "weights_only" not in str(caught.value)


def test_what_can_be_told_is_told(tmp_path):
    for kind, word in (("empty", "is empty"), ("pointer", "git lfs pull"), ("compressed", "compressed zip")):
        damaged_files()[kind](tmp_path / "w.bin")
        with pytest.raises(UserError, match=word):
            read_tensors(tmp_path / "w.bin")


def test_damaged_safetensors_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(STATE, path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"w\.safetensors is damaged"):
        read_tensors(path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"word"', "[" * 100_000, "\xff"])
def test_broken_configurations_are_one_sentence(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)
