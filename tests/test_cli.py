"""The command line: exit codes, sentences, and flags in upstream's spelling or with dashes."""

import os
import subprocess
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

from vexpress_trt import cli


def _run(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "vexpress_trt.cli", *argv], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "command", ["generate", "demo", "extract", "export", "verify", "fetch", "bench", "doctor", "inspect"]
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"vexpress {command}" in capsys.readouterr().out


def _help(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["generate", "demo", "extract", "export", "serve", "batch"])
def test_help_says_a_default_in_one_pair_of_brackets(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = _help(capsys, command)
    assert "(default" in text
    assert ") (default" not in text


def test_help_of_a_server_says_its_limits(capsys: pytest.CaptureFixture[str]) -> None:
    text = _help(capsys, "serve")
    for limit in ("--timeout S seconds for a request, waiting included (default 3600)", "--held MIB", "(default 8192)",
                  "--grpc_port N default 8001", "--threads N CPU threads"):  # fmt: skip
        assert limit in text


def test_help_says_what_stands_where_no_preset_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert "denoising steps (default 25, or the preset's)" in _help(capsys, "generate")
    assert "denoising steps (default 25, or the preset's)" in _help(capsys, "bench", "stages")


@pytest.mark.parametrize("command", ["generate", "doctor", "bench plot x.json --output x.png"])
def test_a_flag_that_is_unknown_is_refused_by_the_command(command: str) -> None:
    done = _run(*command.split(), "--no_such_flag")
    name = " ".join(command.split()[: 2 if command.startswith("bench") else 1])
    assert done.returncode == 2
    assert done.stderr == f"vexpress: error: there is no --no_such_flag; see `vexpress {name} --help`\n"


def test_the_version_is_the_packages() -> None:
    assert _run("--version").stdout == f"vexpress-trt {version('vexpress-trt')}\n"


def test_a_token_without_a_server_is_refused() -> None:
    done = _run("generate", "--reference_image_path", "a.png", "--audio_path", "b.wav", "--output_path", "c.mp4",
                "--token", "secret")  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["vexpress: error: --token is for a server: name it with --server."]


def test_dashes_mean_underscores_and_values_are_left_alone() -> None:
    assert cli._with_underscores(["--audio-path", "a-b.wav", "--output-path=c-d.mp4", "-h"]) == [
        "--audio_path", "a-b.wav", "--output_path=c-d.mp4", "-h",
    ]  # fmt: skip


def test_a_refusal_is_one_sentence_and_exit_2() -> None:
    done = _run("generate", "--reference_image_path", "a.png", "--audio-path", "b.wav", "--output_path", "c.mp4",
                "--image_width", "100")  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["vexpress: error: --image_width 100: must be a multiple of 8 from 64 to 2048."]


@pytest.mark.parametrize(
    "argv",
    [
        ["generate", "--num_inference_steps", "many"],
        ["generate", "--no_such_flag"],
        ["export", "--bundle", "x.bundle", "--random", "tiny", "--precision", "fp8"],
        ["no_such_command"],
        [],
    ],
)
def test_argument_errors_exit_2_without_a_traceback(argv: list[str]) -> None:
    done = _run(*argv)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "error" in done.stderr
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("vexpress: error: ") and "--help`" in sentence


def _run_into(stream: int, *argv: str, unbuffered: str = "") -> tuple[int, str]:
    """Exit status, and what is said on stderr, of a command whose output goes to this file descriptor."""
    done = subprocess.run(
        [sys.executable, "-m", "vexpress_trt.cli", *argv],
        stdout=stream, stderr=subprocess.PIPE, text=True, check=False,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_went_away_ends_a_command_in_silence(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert _run_into(writer, "doctor", unbuffered=unbuffered) == (141, "")
    finally:
        os.close(writer)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(("command", "unbuffered"), [("doctor", ""), ("doctor", "1"), ("--help", "")])
def test_output_onto_a_full_disk_is_refused_in_a_sentence(command: str, unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        status, said = _run_into(full.fileno(), command, unbuffered=unbuffered)
    assert (status, said) == (2, "vexpress: error: the output cannot be written: no space left on device\n")


def test_a_missing_bundle_is_named(tmp_path) -> None:
    done = _run("inspect", str(tmp_path / "none.bundle"))
    assert done.returncode == 2
    assert "none.bundle" in done.stderr


def test_a_signal_during_an_import_ends_the_command_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "like_native.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    pass\n"
    )

    def doctor() -> None:
        import_module("like_native")  # as native modules do, it passes over what is raised in it
        time.sleep(10)
        pytest.fail("the signal was lost")

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("vexpress_trt.engines.doctor.doctor", doctor)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == "vexpress: interrupted\n"
