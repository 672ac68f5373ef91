"""Builds that are killed, interrupted, doubled or damaged afterwards: no engine that is not whole is ever taken."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vexpress_trt import cli
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.trt.build import BuildSettings, build_engines
from vexpress_trt.engines.trt.builder import BuildOptions
from vexpress_trt.engines.trt.flavour import RTX
from vexpress_trt.engines.trt.store import EngineStore

TARGETS = ("sm89", "sm120")
pytestmark = pytest.mark.timeout(1200)  # the first one exports the bundle, which a busy machine makes slow
SMALL = ("audio_projection", "kps_guider", "vae_decoder")


def start(bundle: Path, *graphs: str) -> subprocess.Popen:
    """`vexpress build` in a process of its own, which has begun with the first graph."""
    command = [sys.executable, "-m", "vexpress_trt.cli", "build", str(bundle), "--target", ",".join(TARGETS)]
    process = subprocess.Popen(
        [*command, "--precision", "fp16", "--json", "--graphs", *graphs], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr.readline().startswith(b"1/")
    return process


def settings(bundle: Path, graphs: tuple[str, ...] = SMALL) -> BuildSettings:
    return BuildSettings(bundle, RTX, "fp16", graphs, options=BuildOptions(TARGETS))


def whole(bundle: Path) -> set[str]:
    """The graphs of engines that would be loaded. Fails when one of them is damaged."""
    store = EngineStore(Bundle.open(bundle))
    usable = {stored.sidecar.key.graph: stored for stored in store.all() if not stored.problem}
    assert [graph for graph, stored in usable.items() if store.damage(stored)] == []
    return set(usable)


def test_after_kill_at_ten_random_moments_the_next_build_succeeds(fresh_bundle: Path) -> None:
    moments = random.Random(4)
    survivors = []
    for _ in range(10):
        process = start(fresh_bundle, *SMALL)
        time.sleep(moments.uniform(0, 0.8))
        process.kill()
        process.wait()
        left = whole(fresh_bundle)
        survivors.append(len(left))
        report = build_engines(settings(fresh_bundle))
        assert {engine.graph for engine in report.engines if engine.already_there} == left
        assert whole(fresh_bundle) == set(SMALL)
        shutil.rmtree(fresh_bundle / "engines")
    assert min(survivors) < len(SMALL), "no build was killed before its end"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing_half_built(fresh_bundle: Path, number: int) -> None:
    for moment in (0.1, 0.4, 0.8):
        process = start(fresh_bundle, "reference", "denoiser_guided")
        time.sleep(moment)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], err.decode()
        left = [path.name for path in (fresh_bundle / "engines").glob("*/*") if path.suffix != ".lock"]
        assert [name for name in left if ".tmp" in name] == []
        assert {name.split(".")[0] for name in left} == whole(fresh_bundle) <= {"reference"}
        shutil.rmtree(fresh_bundle / "engines")


def test_the_first_ctrl_c_says_that_it_waits_and_the_second_ends_at_once(fresh_bundle: Path) -> None:
    process = start(fresh_bundle, "denoiser_guided")
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith(b"stopping: waiting for the compiler")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert whole(fresh_bundle) == set()


def test_two_processes_build_once(fresh_bundle: Path) -> None:
    processes = [start(fresh_bundle, *SMALL) for _ in range(2)]
    built = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        built += [engine["graph"] for engine in json.loads(out)["engines"] if not engine["already_there"]]
    assert sorted(built) == sorted(SMALL)
    assert whole(fresh_bundle) == set(SMALL)


@pytest.mark.parametrize("suffix", [".plan", ".json"])
def test_a_flipped_byte_is_reported_by_name_and_the_engine_is_built_again(
    fresh_bundle: Path, suffix: str, capsys: pytest.CaptureFixture
) -> None:
    (engine,) = build_engines(settings(fresh_bundle, ("kps_guider",))).engines
    file = (fresh_bundle / engine.path).with_suffix(suffix)
    content = bytearray(file.read_bytes())
    content[len(content) // 3 if suffix == ".plan" else content.index(b"sm89")] ^= 1
    file.write_bytes(content)
    assert cli.main(["engines", "verify", str(fresh_bundle), "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)
    assert row["plan"] == engine.path and row["problem"]
    assert not build_engines(settings(fresh_bundle, ("kps_guider",))).engines[0].already_there
    assert cli.main(["engines", "verify", str(fresh_bundle)]) == 0


def test_a_full_disk_is_a_sentence(fresh_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    usage = shutil.disk_usage(fresh_bundle)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert cli.main(["build", str(fresh_bundle), "--target", "sm89", "--precision", "fp16"]) == 2
    assert "make room" in capsys.readouterr().err


def test_an_unwritable_bundle_is_a_sentence(fresh_bundle: Path, capsys) -> None:
    if os.geteuid() == 0:
        (fresh_bundle / "engines").write_text("a file in the way")
    else:
        fresh_bundle.chmod(0o500)
    try:
        command = ["build", str(fresh_bundle), "--target", "sm89", "--precision", "fp16", "--graphs", "kps_guider"]
        assert cli.main(command) == 2
        assert "cannot write" in capsys.readouterr().err
    finally:
        fresh_bundle.chmod(0o700)
