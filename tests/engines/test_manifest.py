"""The manifest: a round trip, and errors that name the field."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest, is_safe_path

GRAPH = "onnx/fp32/vae_decoder.onnx"


def _set(*path: Any, value: Any) -> Callable[[dict], None]:
    def change(document: dict) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def test_a_manifest_survives_json(bundle: Bundle) -> None:
    text = bundle.manifest.to_json()
    assert Manifest.from_json(text, "x") == bundle.manifest
    assert (bundle.root / MANIFEST_NAME).read_text() == text


def test_another_schema_says_how_to_export_again(bundle: Bundle) -> None:
    text = bundle.manifest.to_json().replace(f'"schema_version": {SCHEMA_VERSION}', '"schema_version": 99')
    with pytest.raises(UserError, match=f"m.json is a bundle of schema 99, .* reads {SCHEMA_VERSION}: re-export"):
        Manifest.from_json(text, "m.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("schema_version", value="1"), "schema_version is '1', not int"),
        (_set("producer", value=None), "producer is None, not str"),
        (_set("surprise", value=1), "surprise is not a known field"),
        (_set("model", "image_width", value="big"), "model.image_width is 'big', not int"),
        (_set("model", "image_width", value=True), "model.image_width is True, not int"),
        (_set("model", "image_width", value=65), "model.image_width is 65, not a multiple of 8"),
        (_set("model", "context_frames", value=33), "model.context_frames is 33, above 32"),
        (_set("model", "attention_blocks", value=0), "model.attention_blocks is 0, not a positive number"),
        (_set("scheduler", "beta_end", value=0.0001), "scheduler.beta_start and scheduler.beta_end"),
        (_set("scheduler", "num_train_timesteps", value=0), "scheduler.num_train_timesteps is 0"),
        (_set("scheduler", "beta_start", value=10**400), "scheduler.beta_start is 10{56}..., too large for a number"),
        (_set("graphs", value={}), "graphs is {}, not a list"),
        (_set("graphs", 0, "precision", value="fp8"), r"graphs\[0\].precision is 'fp8', not one of fp32, fp16, bf16"),
        (_set("graphs", 0, "name", value="../x"), r"graphs\[0\].name is '../x'"),
        (_set("graphs", 0, "path", value="other"), r"graphs\[0\].files does not list 'other'"),
        (_set("graphs", 0, "files", 1, value="none"), r"graphs\[0\].files\[1\] is 'none', which is not among"),
        (_set("graphs", 0, "inputs", value=[]), r"graphs\[0\].inputs is empty"),
        (_set("graphs", 0, "inputs", 1, "dtype", value="int7"), r"graphs\[0\].inputs\[1\].dtype is 'int7'"),
        (_set("graphs", 0, "inputs", 1, "name", value="latents"), r"graphs\[0\].inputs is empty or repeats a name"),
        (
            _set("graphs", 0, "inputs", 0, "shape", 2, value="h;"),
            r"graphs\[0\].inputs\[0\].shape\[2\] is 'h;', not a",
        ),
        (_set("graphs", 0, "inputs", 0, "shape", 2, value=[]), r"shape\[2\] is \[\], not int or str"),
        (_set("files", GRAPH, "sha256", value="00"), r"files\['onnx/fp32/vae_decoder.onnx'\].sha256 is not 64"),
        (_set("files", GRAPH, "size", value=-1), "size is negative"),
        (_set("files", "../evil", value={"sha256": "00" * 32, "size": 1}), r"files\['../evil'\] does not name a file"),
    ],
)
def test_a_wrong_field_is_named(bundle: Bundle, change: Callable[[dict], None], said: str) -> None:
    document = json.loads(bundle.manifest.to_json())
    change(document)
    with pytest.raises(UserError, match=said):
        Manifest.from_json(json.dumps(document), "m.json")


@pytest.mark.parametrize("field", ["licence", "model", "graphs", "files"])
def test_a_missing_field_is_named(bundle: Bundle, field: str) -> None:
    document = json.loads(bundle.manifest.to_json())
    del document[field]
    with pytest.raises(UserError, match=f"m.json is damaged: {field} is missing"):
        Manifest.from_json(json.dumps(document), "m.json")


def test_a_repeated_graph_is_refused(bundle: Bundle) -> None:
    document = json.loads(bundle.manifest.to_json())
    document["graphs"] *= 2
    with pytest.raises(UserError, match=r"graphs\[1\] repeats vae_decoder fp32"):
        Manifest.from_json(json.dumps(document), "m.json")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"schema_version": []}'])
def test_what_is_no_manifest_is_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match="m.json"):
        Manifest.from_json(text, "m.json")


def test_an_invalid_manifest_is_not_written(bundle: Bundle) -> None:
    wrong = replace(bundle.manifest, model=replace(bundle.manifest.model, context_frames=-1))
    with pytest.raises(ValueError, match="context_frames"):
        wrong.to_json()


@pytest.mark.parametrize(
    ("path", "safe"),
    [
        ("a/b.onnx", True),
        ("..a", True),
        ("", False),
        (".", False),
        ("..", False),
        ("a/../../b", False),
        ("/etc/passwd", False),
        ("a\\b", False),
        ("C:a", False),
        ("a//b", False),
        ("./a", False),
        ("a\0b", False),
        ("a\x1b[2Jb", False),
    ],
)
def test_paths_stay_inside_the_bundle(path: str, safe: bool) -> None:
    assert is_safe_path(path) is safe
