"""Reading tensors and configurations from files that nobody vouches for: nothing in them is ever executed."""

import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vexpress_trt.engines.errors import UserError

_GET_AGAIN = "get it again with `vexpress fetch`"
_POINTER = b"version https://git-lfs"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a state dict saved by torch, by name.

    They keep their dtype and are mapped from the file, not read, wherever its format allows (everything but torch's
    format from before version 1.6). Pickled files are loaded weights-only: code in them does not run.

    Raises UserError for a file that is empty, truncated, damaged, asks for code, or holds anything but tensors of
    floating-point numbers.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(_POINTER))
    except OSError as problem:
        raise UserError(f"{path} cannot be read ({problem.strerror}); check its permissions") from problem
    if not start:
        raise UserError(f"{path} is empty: {_GET_AGAIN}")
    if start == _POINTER:
        raise UserError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` there, or {_GET_AGAIN}")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        tensors = _read_pickled(path, is_zip=start.startswith(b"PK"))
    _check_tensors(path, tensors)
    return {name: tensor.detach() for name, tensor in tensors.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file: one JSON object. Raises UserError where it is anything else."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UserError(f"{path} cannot be read ({problem.strerror}); check its permissions") from problem
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{path} is not readable JSON ({problem}): {_GET_AGAIN}") from problem
    if not isinstance(config, dict):
        raise UserError(f"{path} holds a {type(config).__name__}, not a configuration: {_GET_AGAIN}")
    return config


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as problem:  # the Rust reader has one error type per kind of damage, and RuntimeError
        raise UserError(
            f"{path} is damaged or not a safetensors file ({first_line(problem)}): {_GET_AGAIN}"
        ) from problem


def _read_pickled(path: Path, *, is_zip: bool) -> Any:
    if is_zip:
        _check_archive(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # torch comments on foreign pickles, we refuse them below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as problem:  # a hostile or damaged pickle can provoke any exception in the unpickler
        if asked := re.search(r"GLOBAL ([\w.]+)", str(problem)):
            raise UserError(
                f"{path} is not a plain file of tensors: loading it would run {asked[1]}, which was refused and not "
                f"executed; mistrust its source and {_GET_AGAIN}"
            ) from problem
        raise UserError(f"{path} is damaged, or holds something other than plain tensors: {_GET_AGAIN}") from problem


def _check_archive(path: Path) -> None:
    """torch's format is an uncompressed zip archive; anything compressed could unpack to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as problem:
        raise UserError(f"{path} is truncated or damaged ({first_line(problem)}): {_GET_AGAIN}") from problem
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError(f"{path} is a compressed zip archive, not a checkpoint: {_GET_AGAIN}")


def _check_tensors(path: Path, tensors: Any) -> None:
    if not isinstance(tensors, dict) or not tensors:
        raise UserError(f"{path} holds no named tensors but a {type(tensors).__name__}: {_GET_AGAIN}")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(
                f"{path} holds a {type(tensor).__name__} under {name!r}, not a tensor; save the bare state dict of the "
                "network"
            )
        if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_quantized:
            raise UserError(f"{path} holds {tensor.dtype} under {name!r}; only floating-point weights are supported")


def first_line(problem: Exception) -> str:
    """The beginning of an exception's message, fit for a sentence."""
    lines = str(problem).strip().splitlines()
    return (lines[0] if lines else type(problem).__name__)[:160].rstrip(". ")
