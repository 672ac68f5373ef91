"""Fetching the official weights, against a hub on this machine."""

import importlib.util
import io
import json
import random
import shutil
from pathlib import Path

import filelock
import pytest

pytest.importorskip("huggingface_hub", reason="needs the export extra")

from vexpress_trt.engines.errors import UserError
from vexpress_trt.export.fetch import fetch
from vexpress_trt.export.hub_sources import PART_NAMES, PARTS

_SPEC = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
hub_server = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hub_server)

AUTHORS = "tk93/V-Express"
BIG = "denoising_unet.bin"
BIG_BYTES = 200_000


def content(path: str) -> bytes:
    size = BIG_BYTES if path == BIG else 300 if path.endswith(".json") else 5000
    return random.Random(path).randbytes(size)


def official_repositories() -> dict[str, dict[str, bytes]]:
    files = [pair for part in PARTS for pair in part.sources[0].files + part.sources[0].optional]
    return {AUTHORS: {path: content(path) for path, _ in files}}


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with hub_server.Hub(official_repositories()) as hub:
        yield hub


@pytest.fixture
def run(hub, tmp_path):
    def run(folder: str = "checkpoints", **options):
        lines = []
        defaults = {"assume_yes": True, "parts": ["v-express", "vae"], "endpoint": hub.url, "retry_seconds": 0.001}
        options = defaults | {"say": lines.append} | options
        result = fetch(tmp_path / folder, **options)
        return result, "\n".join(lines)

    return run


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.suffix == ".part" or ".tmp" in path.name]


def test_all_parts_land_in_the_official_layout(hub, run, tmp_path):
    result, _ = run(parts=None)
    folder = tmp_path / "checkpoints"
    for part in PARTS:
        for path, place in part.sources[0].files:
            assert (folder / place).read_bytes() == content(path)
    assert set(result.downloaded) >= {
        "v-express/denoising_unet.bin",
        "stable-diffusion-v1-5/unet/config.json",
        "sd-vae-ft-mse/diffusion_pytorch_model.bin",
        "wav2vec2-base-960h/preprocessor_config.json",
        "insightface_models/models/buffalo_l/det_10g.onnx",
    }
    assert leftovers(folder) == []


def test_sizes_and_licences_are_shown_before_the_question(hub, run, tmp_path):
    asked = []
    _, text = run(parts=None, assume_yes=False, ask=lambda question: asked.append(question) or "y")
    assert len(asked) == 1
    assert "v-express/denoising_unet.bin" in text and "200 kB" in text
    for licence in ("non-commercial research only", "MIT", "Apache-2.0", "CreativeML Open RAIL-M"):
        assert licence in text


@pytest.mark.parametrize("answer", ["n", "", "maybe"])
def test_anything_but_yes_downloads_nothing(hub, run, tmp_path, answer):
    with pytest.raises(UserError, match="not confirmed"):
        run(assume_yes=False, ask=lambda _: answer)
    assert hub.downloads() == [] and not (tmp_path / "checkpoints").exists()


def test_without_a_terminal_it_refuses_unless_told_yes(hub, run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(UserError, match="no terminal.*--yes"):
        run(assume_yes=False)
    assert hub.downloads() == []


def test_a_second_run_downloads_nothing_and_asks_nothing(hub, run):
    run()
    seen = len(hub.downloads())
    result, text = run(assume_yes=False)
    assert result.downloaded == () and len(hub.downloads()) == seen
    assert "Everything is there" in text


def test_files_copied_from_elsewhere_are_recognised_by_their_hash(hub, run, tmp_path):
    run()
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "copy", ignore=shutil.ignore_patterns("*.json.bak"))
    (tmp_path / "copy" / "vexpress-fetch.json").unlink()
    seen = len(hub.downloads())
    assert run("copy")[0].downloaded == () and len(hub.downloads()) == seen


def test_a_damaged_file_of_an_earlier_run_is_fetched_again(hub, run, tmp_path):
    run()
    victim = tmp_path / "checkpoints" / "v-express" / BIG
    victim.write_bytes(b"\0" * BIG_BYTES)
    assert run()[0].downloaded == (f"v-express/{BIG}",)
    assert victim.read_bytes() == content(BIG)


def test_a_file_that_is_not_ours_is_not_overwritten_unasked(hub, run, tmp_path):
    mine = tmp_path / "checkpoints" / "v-express" / BIG
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"my own training run")
    with pytest.raises(UserError, match=f"v-express/{BIG}.*--replace"):
        run()
    assert mine.read_bytes() == b"my own training run"
    run(replace=True)
    assert mine.read_bytes() == content(BIG)


def test_a_dropped_connection_is_resumed_within_a_run(hub, run, tmp_path):
    hub.cut_after[BIG] = [70_000, 0, 60_000]
    run()
    ranges = [request.range for request in hub.downloads() if request.path.endswith(BIG)]
    assert ranges == [None, "bytes=70000-", "bytes=70000-", "bytes=130000-"]
    assert (tmp_path / "checkpoints" / "v-express" / BIG).read_bytes() == content(BIG)


def test_an_interrupted_download_is_resumed_by_the_next_run(hub, run, tmp_path):
    hub.cut_after[BIG] = [70_000] + [0] * 5
    with pytest.raises(UserError, match="broke off at 70000 of 200000 bytes.*run the command again"):
        run()
    target = tmp_path / "checkpoints" / "v-express" / BIG
    assert not target.exists() and len(leftovers(target.parent)) == 1
    hub.requests.clear()
    result, text = run()
    assert "resume at 70 kB" in text
    assert next(r.range for r in hub.downloads() if r.path.endswith(BIG)) == "bytes=70000-"
    assert "v-express/reference_net.bin" not in result.downloaded  # finished before the connection broke
    assert target.read_bytes() == content(BIG) and leftovers(target.parent) == []


def test_a_server_without_ranges_starts_over_correctly(hub, run, tmp_path):
    hub.no_ranges = True
    hub.cut_after[BIG] = [70_000]
    run()
    assert (tmp_path / "checkpoints" / "v-express" / BIG).read_bytes() == content(BIG)


@pytest.mark.parametrize("path", [BIG, "model_ckpts/sd-vae-ft-mse/config.json"])
def test_a_wrong_hash_is_refused_and_nothing_is_left_of_the_file(hub, run, tmp_path, path):
    hub.corrupt.add(path)
    with pytest.raises(UserError, match=f"{path} .*wrong hash"):
        run()
    name = path.rpartition("/")[2]
    folder = {BIG: "v-express"}.get(name, "sd-vae-ft-mse")
    assert not (tmp_path / "checkpoints" / folder / name).exists()
    assert leftovers(tmp_path / "checkpoints") == []
    hub.corrupt.clear()
    run()
    assert (tmp_path / "checkpoints" / folder / name).read_bytes() == content(path)


def test_a_file_longer_than_announced_is_refused(hub, run, tmp_path):
    hub.padded.add(BIG)
    with pytest.raises(UserError, match=f"{BIG} .*longer than the 200000 bytes"):
        run()
    assert leftovers(tmp_path / "checkpoints") == []


def test_a_partial_file_of_another_version_is_not_continued(hub, run, tmp_path):
    hub.cut_after[BIG] = [70_000] + [0] * 5
    with pytest.raises(UserError):
        run()
    fresh = random.Random("version 2").randbytes(BIG_BYTES)
    hub.repositories[AUTHORS][BIG] = fresh
    run()
    folder = tmp_path / "checkpoints" / "v-express"
    assert (folder / BIG).read_bytes() == fresh and leftovers(folder) == []


def test_a_busy_hub_is_tried_again_and_a_refusal_is_not(hub, run):
    hub.status[BIG] = [503, 429]
    run("one")
    hub.status[BIG] = [403]
    with pytest.raises(UserError, match=f"refused {BIG} .*403"):
        run("two")


def test_parts_missing_at_the_authors_come_from_the_original_repositories(hub, run, tmp_path):
    files = hub.repositories[AUTHORS]
    for path in [path for path in files if "sd-vae" in path or "wav2vec2" in path or "unet/" in path]:
        del files[path]
    for part in PARTS:
        if part.name in ("vae", "wav2vec2", "unet-config"):
            source = part.sources[-1]
            hub.repositories[source.repository] = {path: content(path) for path, _ in source.files}
    run(parts=["vae", "wav2vec2", "unet-config"])
    folder = tmp_path / "checkpoints"
    assert (folder / "sd-vae-ft-mse/diffusion_pytorch_model.safetensors").is_file()
    assert (folder / "wav2vec2-base-960h/model.safetensors").is_file()
    receipt = json.loads((folder / "vexpress-fetch.json").read_text())["files"]
    assert receipt["stable-diffusion-v1-5/unet/config.json"]["repository"].startswith("stable-diffusion-v1-5/")


def test_networks_in_the_first_releases_folder_are_found(hub, run, tmp_path):
    files = hub.repositories[AUTHORS]
    for name in [path for path in files if "/" not in path]:
        files[f"model_ckpts/v-express/{name}"] = files.pop(name)
    run(parts=["v-express"])
    assert (tmp_path / "checkpoints" / "v-express" / BIG).is_file()


def test_a_part_nobody_has_is_named(hub, run):
    del hub.repositories[AUTHORS]["model_ckpts/insightface_models/models/buffalo_l/det_10g.onnx"]
    with pytest.raises(UserError, match="no complete face .*tk93/V-Express, public-data/insightface"):
        run(parts=["vae", "face"])


def test_only_the_chosen_parts_are_downloaded(hub, run, tmp_path):
    result, text = run(parts=["vae"])
    assert set(result.downloaded) == {"sd-vae-ft-mse/config.json", "sd-vae-ft-mse/diffusion_pytorch_model.bin"}
    assert "non-commercial" not in text
    with pytest.raises(UserError, match="unknown part ears; choose from " + ", ".join(PART_NAMES)):
        run(parts=["ears"])


def test_no_token_is_sent(hub, run, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    run()
    assert not any(request.authorised for request in hub.requests)


def test_a_full_disk_is_seen_beforehand(hub, run, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="needs .* has 1 kB free"):
        run()
    assert hub.downloads() == []


def test_a_second_fetch_into_the_same_folder_waits_its_turn(hub, run, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with (
        filelock.FileLock(tmp_path / "checkpoints" / ".vexpress-fetch.lock"),
        pytest.raises(UserError, match="another"),
    ):
        run()


@pytest.mark.parametrize(
    ("endpoint", "sentence"),
    [
        ("http://127.0.0.1:9", "cannot reach http://127.0.0.1:9 .*a network is needed"),
        ("ftp://hub", "not a web address"),
    ],
)
def test_an_unreachable_hub_is_one_clear_sentence(tmp_path, monkeypatch, endpoint, sentence):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(UserError, match=sentence) as caught:
        fetch(tmp_path / "checkpoints", endpoint=endpoint, assume_yes=True)
    assert "\n" not in str(caught.value)


def test_offline_mode_is_named(hub, run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        run()


def test_a_folder_that_is_a_file_is_refused(hub, run, tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="is a file"):
        run()
