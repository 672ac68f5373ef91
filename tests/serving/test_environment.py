"""Setting up and starting: what is refused, in a sentence, before anything runs."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from served import free_ports

from vexpress_trt.cli import main
from vexpress_trt.engines import selection
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.serving import environment

SERVING = Path(__file__).resolve().parents[2] / "serving"


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("dear reader")
    with pytest.raises(UserError, match="holds something else"):
        environment.prepare(tmp_path, print)
    assert (tmp_path / "letter").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("/proc/nothing/environment", tmp_path / "file" / "environment"):
        with pytest.raises(UserError, match="cannot write"):
            environment.prepare(Path(folder), print)


def test_a_python_without_wheels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "sys", SimpleNamespace(platform="linux", version_info=(3, 14), version="3.14.0 x"))
    with pytest.raises(UserError, match="Python 3.11 or 3.12: this is Python 3.14.0"):
        environment.prepare(tmp_path / "environment", print)


def test_a_failed_set_up_leaves_nothing_and_gives_pips_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(command: list[str], **options: object) -> subprocess.CompletedProcess:
        (tmp_path / "environment").mkdir(exist_ok=True)
        return subprocess.CompletedProcess(command, 1, "", "Collecting\nERROR: no such wheel")

    monkeypatch.setattr(environment.subprocess, "run", failing)
    with pytest.raises(UserError, match="ERROR: no such wheel"):
        environment.prepare(tmp_path / "environment", lambda line: None)
    assert not (tmp_path / "environment").exists()


def test_what_is_complete_is_used_without_a_lock(serve_environment: Path) -> None:
    said: list[str] = []
    lock = Path(f"{serve_environment}.lock")
    lock.unlink(missing_ok=True)
    assert environment.prepare(serve_environment, said.append).root == serve_environment
    assert not said and not lock.exists()


def test_a_taken_port_is_named(serve_environment: Path, capsys: pytest.CaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--environment", str(serve_environment), "--http_port", str(port)]) == 2
    assert f"--http_port {port}: cannot listen there" in capsys.readouterr().err


def test_a_bundle_that_is_not_there_is_refused_before_triton_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    place = tmp_path / "environment"
    assert main(["serve", "--environment", str(place), "--bundle", str(tmp_path / "nothing")]) == 2
    said = capsys.readouterr().err
    assert "there is no bundle at" in said and len(said.splitlines()) == 1
    assert not place.exists()


@pytest.mark.parametrize(
    ("host", "token", "warned"), [("0.0.0.0", "", True), ("0.0.0.0", "secret", False), ("127.0.0.1", "", False)]
)
def test_a_server_for_others_without_a_token_is_warned_about(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, host: str, token: str, warned: bool
) -> None:
    monkeypatch.setenv("VEXPRESS_TOKEN", token)
    (tmp_path / "something").touch()  # so that nothing is set up here
    assert main(["serve", "--environment", str(tmp_path), "--host", host]) == 2
    assert (f"warning: --host {host} without a token" in capsys.readouterr().err) is warned


@pytest.mark.skipif(not gpu_status().reason, reason="needs a machine without a GPU")
def test_a_device_that_is_not_there_is_refused_before_triton_is(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    place = tmp_path / "environment"
    assert main(["serve", "--environment", str(place), "--device", "cuda"]) == 2
    assert "vexpress: error: --device cuda: " in capsys.readouterr().err.splitlines()[-1]
    assert not place.exists()


def test_a_bundle_that_workers_cannot_use_ends_it_with_their_sentence(
    serve_environment: Path, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the command looks at is there; it is gone when the workers start.
    monkeypatch.setattr(Bundle, "open", lambda path: SimpleNamespace(root=path))
    monkeypatch.setattr(selection, "choose_engines", lambda bundle, **wishes: None)
    names = ("grpc_port", "http_port", "metrics_port")
    ports = [f"--{name}={port}" for name, port in zip(names, free_ports(3), strict=True)]
    flags = ["--environment", str(serve_environment), "--bundle", str(tmp_path / "nothing")]
    assert main(["serve", *flags, *ports]) == 2
    said = capfd.readouterr().err
    assert "there is no bundle at" in said.splitlines()[-1]
    assert "Fatal" not in said


@pytest.mark.parametrize(
    "flags",
    [["--workers=0"], ["--timeout=0"], ["--queue=-1"], ["--max_seconds=nan"], ["--drain=-1"], ["--gpu_memory=much"],
     ["--threads=0"]],
)  # fmt: skip
def test_limits_that_are_none_are_refused(flags: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["export-triton", "a.bundle", "a.repository", *flags]) == 2
    assert flags[0].partition("=")[0] in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_file_is_one() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", SERVING / "vexpress.service"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "vexpress.service" not in done.stderr


@pytest.mark.parametrize("name", ["vexpress.service", "Dockerfile"])
def test_flags_in_deployment_files_exist(name: str) -> None:
    known = subprocess.run(
        [sys.executable, "-m", "vexpress_trt.cli", "serve", "--help"], capture_output=True, text=True, check=True
    ).stdout
    ours = {word for line in _serve_lines(name) for word in line if word.startswith("--")}
    assert ours
    assert all(flag in known for flag in ours)


def _serve_lines(name: str) -> list[list[str]]:
    lines = (SERVING / name).read_text().replace('"', " ").replace(",", " ").replace("]", " ").splitlines()
    return [line.split() for line in lines if "serve" in line and not line.startswith("#")]
