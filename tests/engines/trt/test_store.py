"""Engines on disk: found by key, whole or absent, what is wrong with one is named, built once."""

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vexpress_trt import cli
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.trt.bindings import Binding
from vexpress_trt.engines.trt.key import EngineKey, Sidecar
from vexpress_trt.engines.trt.store import EngineStore, graph_hash

BINDINGS = (Binding("latents", True, "float16", (8, 4, -1, -1)), Binding("image", False, "float32", (8, 3, -1, -1)))
PLAN = bytes(range(256)) * 8


@pytest.fixture
def store(bundle: Bundle) -> EngineStore:
    return EngineStore(bundle)


@pytest.fixture
def key(bundle: Bundle) -> EngineKey:
    onnx = graph_hash(bundle, "vae_decoder", "fp32")
    return EngineKey("tensorrt-rtx", "1.7", 13, ("sm89", "sm120"), "vae_decoder", "fp32", "N8_h8_w8", (), onnx)


def test_what_was_put_is_found(store: EngineStore, key: EngineKey) -> None:
    path = store.put(key, PLAN, {"seconds": 1.0})
    assert store.stored(key).plan == path == store.plan_path(key)
    assert path.read_bytes() == PLAN
    assert [stored.sidecar.key for stored in store.all()] == [key]


def test_a_plan_whose_sidecar_was_not_written_is_taken_back(
    store: EngineStore, key: EngineKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_sidecar: Sidecar) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sidecar, "to_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.put(key, PLAN, {})
    assert store.all() == []
    assert not store.plan_path(key).exists()


@pytest.mark.parametrize(
    "change",
    [
        {"version": "1.8"},
        {"targets": ("sm86",)},
        {"profile": "N1_h8_w8"},
        {"onnx": "0" * 64},
        {"options": ("version_compatible",)},
        {"cuda_major": 12},
    ],
)
def test_an_engine_of_another_key_is_not_found(store: EngineStore, key: EngineKey, change: dict) -> None:
    store.put(key, PLAN, {})
    assert store.stored(replace(key, **change)) is None and not store.seems_there(replace(key, **change))
    assert store.stored(key) is not None


def test_without_any_engine_none_is_found(store: EngineStore, key: EngineKey) -> None:
    assert store.stored(key) is None and store.all() == []


@pytest.mark.parametrize(
    "damage",
    ["flipped", "cut", "gone sidecar", "flipped sidecar", "foreign sidecar", "huge sidecar", "endless sidecar"],
)
@pytest.mark.timeout(20)
def test_damage_is_named_and_never_found(store: EngineStore, key: EngineKey, damage: str) -> None:
    path = store.put(key, PLAN, {})
    sidecar = path.with_suffix(".json")
    if damage == "flipped":
        path.write_bytes(PLAN[:100] + bytes([PLAN[100] ^ 1]) + PLAN[101:])
    elif damage == "cut":
        path.write_bytes(PLAN[:-1])
    elif damage == "gone sidecar":
        sidecar.unlink()
    elif damage == "flipped sidecar":
        sidecar.write_text(sidecar.read_text().replace("{", "[", 1))
    elif damage == "foreign sidecar":
        sidecar.write_text(json.dumps({"sidecar_version": 99}))
    elif damage == "endless sidecar":
        sidecar.unlink()
        sidecar.symlink_to("/dev/zero")
    else:
        sidecar.write_text(" " * (2 << 20))
    (stored,) = store.all()
    assert "vae_decoder" in store.damage(stored)
    assert store.stored(key) is None


@pytest.mark.parametrize("linked", ["engines", "engines/some"])
def test_nothing_is_removed_behind_a_link_out_of_the_bundle(store: EngineStore, tmp_path: Path, linked: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    kept = elsewhere / ("some" if linked == "engines" else "") / "notes.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    link = store.bundle.root / linked
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere)
    with pytest.raises(UserError, match="engines/some leads out of the bundle"):
        store.prune(lambda stored: None)
    assert kept.exists()


def test_any_flipped_bit_of_a_sidecar_is_noticed_or_harmless(store: EngineStore, key: EngineKey) -> None:
    sidecar = store.put(key, PLAN, {"note": "x"}, BINDINGS).with_suffix(".json")
    content = sidecar.read_bytes()
    written = Sidecar.from_json(content.decode(), "x")
    for position in range(0, len(content), 7):
        sidecar.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        if store.stored(key) is None:
            continue
        assert Sidecar.from_json(sidecar.read_text(), "x") == written


def test_a_plan_put_in_the_place_of_another_is_not_taken(store: EngineStore, key: EngineKey) -> None:
    other = replace(key, precision="bf16")
    path = store.put(other, PLAN, {})
    store.plan_path(key).parent.mkdir()
    for suffix in (".plan", ".json"):
        path.with_suffix(suffix).rename(store.plan_path(key).with_suffix(suffix))
    (stored,) = store.all()
    assert "built as another engine" in store.damage(stored)
    assert store.stored(key) is None


def test_prune_removes_what_cannot_be_used_and_nothing_else(
    store: EngineStore, key: EngineKey, capsys: pytest.CaptureFixture
) -> None:
    good = store.put(key, PLAN, {})
    store.put(replace(key, version="1.6", onnx="1" * 64), PLAN, {})
    damaged = store.put(replace(key, version="1.5"), PLAN, {})
    damaged.write_bytes(b"")
    (good.parent / ".half.12345678.tmp.plan").write_bytes(b"half")
    root = str(store.bundle.root)
    assert cli.main(["engines", "verify", root]) == 1
    out = capsys.readouterr().out
    assert "exported again since" in out and "has 0 bytes" in out
    assert cli.main(["engines", "prune", root]) == 0
    left = {path for path in store.root.glob("*/*") if path.suffix != ".lock"}
    assert left == {good, good.with_suffix(".json")}
    capsys.readouterr()
    assert cli.main(["engines", "verify", root, "--json"]) == 0
    assert [row["problem"] for row in json.loads(capsys.readouterr().out)] == [""]
    assert cli.main(["engines", "prune", root]) == 0
    assert "nothing to prune" in capsys.readouterr().out


def test_a_list_names_the_plan_that_was_cut_its_sizes_and_its_options(
    store: EngineStore, key: EngineKey, capsys: pytest.CaptureFixture
) -> None:
    path = store.put(replace(key, options=("weight_streaming",)), PLAN, {})
    path.write_bytes(PLAN[:1000])
    root = str(store.bundle.root)
    assert cli.main(["engines", "list", root]) == 0
    out = capsys.readouterr().out
    assert f"{path.name} has 1000 bytes, not {len(PLAN)}" in out
    assert f"{path.relative_to(store.bundle.root)}: sizes N8_h8_w8, options weight_streaming" in out
    assert cli.main(["engines", "list", root, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["options"] == ["weight_streaming"] and row["problem"]


def test_what_seems_to_be_there_is_known_without_reading_it(store: EngineStore, key: EngineKey) -> None:
    assert not store.seems_there(key)
    path = store.put(key, PLAN, {})
    assert store.seems_there(key) and not store.seems_there(replace(key, onnx="1" * 64))
    path.write_bytes(PLAN[:-1])
    assert not store.seems_there(key)


def test_prune_leaves_what_is_being_built(store: EngineStore, key: EngineKey) -> None:
    removed = []
    with store.building(key):
        path = store.plan_path(key)
        temporaries = [path.with_name(f".{path.stem}.0123abcd.tmp.{kind}") for kind in ("plan", "json")]
        locks = [file.with_name(f"{file.name}.lock") for file in temporaries]
        for file in (path, *temporaries, *locks):
            file.write_bytes(PLAN)
        store.prune(removed.append)
        assert all(file.exists() for file in (path, *temporaries)) and removed == []
    store.prune(removed.append)
    assert list(path.parent.iterdir()) == [path.with_suffix(".lock")]
    assert [stored.plan for stored in removed] == [path]


def _hold(root: Path, key: EngineKey, held, release) -> None:
    with EngineStore(Bundle.open(root)).building(key):
        held.set()
        release.wait(30)


def test_a_second_process_waits_for_the_first(store: EngineStore, key: EngineKey) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(store.bundle.root, key, held, release))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(UserError, match="another process is building"), store.building(key, patience=0.1):
            pass
        release.set()
        with store.building(key, patience=30):
            pass
    finally:
        release.set()
        other.join()


def test_engines_of_two_profiles_stand_side_by_side(store: EngineStore, key: EngineKey) -> None:
    larger = replace(key, profile="N8_h16_w16")
    assert store.put(key, PLAN, {}) != store.put(larger, PLAN[:99], {})
    assert store.stored(key) is not None and store.stored(larger) is not None


def test_another_precision_or_target_has_another_folder(make_bundle: Callable, key: EngineKey) -> None:
    folders = {key.folder, replace(key, precision="fp16").folder, replace(key, targets=("sm89",)).folder}
    assert len(folders) == 3
    assert replace(key, graph="denoiser_guided", profile="x", onnx="2" * 64).folder == key.folder
