"""The C++ client, built as its users build it: against a scripted server, under valgrind, and its wire format."""

import dataclasses
import json
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grpc", reason="needs the client extra")

import grpc
from fake_triton import FRAMES, answer, error, fake_triton, frame, info, picture, summary, whole_clip
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from served import Served

from vexpress_trt.engines.manifest import FileRecord, GraphSpec, Manifest, ModelConfig, SchedulerConfig, TensorSpec
from vexpress_trt.engines.trt.bindings import Binding
from vexpress_trt.engines.trt.key import EngineKey, Sidecar
from vexpress_trt.runtime import GenerationRequest, generate
from vexpress_trt.runtime.tracks import save_track
from vexpress_trt.serving import client_wire as wire

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def build_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The optional targets, built by the top-level CMake; skips where their libraries are missing."""
    if not shutil.which("cmake"):
        pytest.skip("needs CMake")
    folder = tmp_path_factory.mktemp("cpp") / "build"
    flags = ["-DVEXPRESS_PYTHON=OFF", "-DVEXPRESS_CUDA=OFF", "-DCMAKE_CXX_FLAGS=-g -Werror"]
    configured = _call("cmake", "-S", ROOT, "-B", folder, *flags)
    assert configured.returncode == 0, configured.stderr
    targets = _call("cmake", "--build", folder, "--target", "help").stdout
    if "vexpress_client" not in targets:
        pytest.skip("needs gRPC and protobuf for C++ (on Debian: see serving/cpp/packages.txt)")
    built = _call("cmake", "--build", folder, "--parallel", "2")
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "serving" / "cpp"


@pytest.fixture(scope="module")
def program(build_dir: Path) -> Path:
    return build_dir / "vexpress_client"


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    (tmp_path / "face.png").write_bytes(b"a portrait")
    (tmp_path / "voice.wav").write_bytes(b"speech")
    files = {"portrait": "face.png", "audio": "voice.wav", "output": "out.rgb"}
    return [word for flag, name in files.items() for word in (f"--{flag}", str(tmp_path / name))]


def _call(*words: Any) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, timeout=300)


def _endless(inputs: dict[str, bytes]):
    yield info(frames=10**6)
    for index in range(10**6):
        time.sleep(0.01)
        yield frame(index)


def _chunks(inputs: dict[str, bytes]):
    yield info()
    for index, piece in enumerate((b"ftyp", b"moof", b"mdat")):
        bytes_of = np.frombuffer(piece, np.uint8)
        yield answer(chunk=bytes_of, index=np.array([index]), made_at=np.array([time.monotonic()]))
    yield summary()


def test_raw_frames_as_the_server_made_them(program: Path, flags: list[str], tmp_path: Path) -> None:
    with fake_triton(whole_clip) as server:
        done = _call(program, *flags, "--server", server.url, "--token", "secret", "--stats",
                     "--settings", '{"fps": 25, "seed": 18446744073709551615}')  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = np.stack([picture(index) for index in range(FRAMES)])
    assert (tmp_path / "out.rgb").read_bytes() == expected.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face.png", "out.rgb", "voice.wav"]
    assert done.stderr.startswith("5 frames of 6x4, 25/1 frames/s, as raw video (rgb24)\n")
    stats = json.loads(done.stderr.splitlines()[1])
    assert stats["answers"] == FRAMES and 0 <= stats["median_ms"] <= stats["max_ms"]
    assert (server.inputs[0]["portrait"], server.inputs[0]["audio"]) == (b"a portrait", b"speech")
    settings = json.loads(server.inputs[0]["settings"][4:])
    assert settings == {"output": "frames", "fps": 25, "seed": 2**64 - 1}
    assert server.metadata[0]["authorization"] == "Bearer secret"


def test_mp4_pieces_one_after_the_other_on_standard_output(program: Path, flags: list[str], tmp_path: Path) -> None:
    with fake_triton(_chunks) as server:
        done = _call(program, *flags, "--output", "-", "--format", "mp4", "--server", server.url, "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "ftypmoofmdat", "")
        assert _call(program, *flags, "--output", tmp_path / "out.mp4", "--server", server.url).returncode == 0
    assert (tmp_path / "out.mp4").read_bytes() == b"ftypmoofmdat"
    assert json.loads(server.inputs[0]["settings"][4:]) == {"output": "mp4"}


def test_a_track_takes_along_the_size_and_rate_that_lie_beside_it(
    program: Path, flags: list[str], tmp_path: Path
) -> None:
    save_track(tmp_path / "kps.npy", np.zeros((3, 3, 2), np.float32), (104, 72), 23.976)
    with fake_triton(whole_clip) as server:
        assert _call(program, *flags, "--server", server.url, "--kps", tmp_path / "kps.npy").returncode == 0
    assert server.inputs[0]["kps"] == (tmp_path / "kps.npy").read_bytes()
    assert json.loads(server.inputs[0]["settings"][4:]) == {"output": "frames", "kps_size": "104,72", "kps_fps": 23.976}


FAILURES = {
    "invalid": ([error("invalid: the portrait is empty.")], "invalid: the portrait is empty."),
    "busy": ([error("in ensemble: busy: 8 wait.")], "busy: 8 wait."),
    "unauthorized": ([error("unauthorized: no token.")], "unauthorized: no token."),
    "worker died": ([info(), frame(0), error("failed: the worker died.")], "failed: the worker died."),
    "unknown model": ([error("Request for unknown model")], "failed: Request for unknown model"),
    "ends early": ([info(), frame(0)], "ended the stream after 1 answers"),
    "ends before it began": ([], "ended the stream before the first frame"),
    "a summary too early": ([info(), frame(0), summary()], "a summary before the last frame"),
    "a frame left out": ([info(), frame(0), frame(2)], "answer 2 where 1 was due"),
    "too many frames": ([info(), *map(frame, range(FRAMES + 1))], "more frames than announced"),
    "a frame of another size": ([info(), frame(0, picture(0, height=8))], "frame of another shape"),
    "floats for pixels": ([info(), frame(0, np.zeros((4, 6, 3)))], "no frame"),
    "no description": ([frame(0)], "no info"),
    "a description that is no JSON": ([answer(info="{")], "no description of the clip"),
    "another version": ([info(version=2)], "another version"),
    "a clip of negative width": ([info(width=-6)], "no width"),
    "connection lost": ([info(), frame(0), grpc.StatusCode.UNAVAILABLE], "broke after 1 answers"),
    "no Triton": ([grpc.StatusCode.UNIMPLEMENTED], "is no Triton server"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_every_failure_is_a_sentence_exit_2_and_no_file(
    program: Path, flags: list[str], tmp_path: Path, case: str
) -> None:
    answers, words = FAILURES[case]
    with fake_triton(lambda inputs: iter(answers)) as server:
        done = _call(program, *flags, "--server", server.url, "--quiet")
    assert done.returncode == 2
    assert done.stderr.startswith("vexpress_client: ") and done.stderr.count("\n") == 1
    assert words in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face.png", "voice.wav"]


def test_a_time_limit_of_the_clients_own(program: Path, flags: list[str]) -> None:
    def asleep(inputs):
        yield info()
        time.sleep(2)

    with fake_triton(asleep) as server:
        done = _call(program, *flags, "--server", server.url, "--quiet", "--timeout", "0.5")
    assert done.returncode == 2 and "timeout: " in done.stderr


def test_no_server_at_the_address(program: Path, flags: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        done = _call(program, *flags, "--server", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.returncode == 2 and "unreachable: no server answers at" in done.stderr


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--smile"], "there is no flag --smile"),
        (["--server"], "--server needs a value"),
        (["--timeout", "soon"], "number of seconds"),
        (["--settings", "[1]"], "no JSON object"),
        (["--settings", '{"output": "mp4"}'], "not given as a setting"),
        (["--audio", "none.wav"], "none.wav cannot be read"),
        (["--output", "/proc/none/out.rgb"], "cannot write"),
        (["--token", "line\nline"], "cannot travel in a header"),
        (["--server", "http://localhost"], "is not the address of a server"),
    ],
)
def test_argument_errors(program: Path, flags: list[str], extra: list[str], words: str) -> None:
    done = _call(program, *flags, *extra)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(
            signal.SIGHUP,
            marks=pytest.mark.skipif(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, reason="started by nohup"),
        ),
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGKILL,
    ],
)
def test_a_client_that_is_stopped_stops_the_server(
    program: Path, flags: list[str], tmp_path: Path, stop: signal.Signals
) -> None:
    with fake_triton(_endless) as server:
        running = subprocess.Popen([program, *flags, "--server", server.url], stderr=subprocess.PIPE, text=True)
        running.stderr.readline()
        running.send_signal(stop)
        assert running.wait(5) == (-9 if stop == signal.SIGKILL else 128 + stop)
        assert server.gone.wait(5)
    if stop != signal.SIGKILL:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["face.png", "voice.wav"]


def test_a_slow_reader_holds_the_server_back(program: Path, flags: list[str]) -> None:
    large = frame(0, np.zeros((1024, 1024, 3), np.uint8))

    def many(inputs):
        yield info(frames=1000, width=1024, height=1024)
        for index in range(1000):
            large.infer_response.raw_output_contents[1] = index.to_bytes(8, "little")
            yield large

    with fake_triton(many) as server:
        command = [program, *flags, "--output", "-", "--server", server.url, "--quiet"]
        running = subprocess.Popen(command, stdout=subprocess.PIPE)
        running.stdout.read(1 << 20)
        time.sleep(1.0)
        assert server.sent <= 16  # of 3 MiB each
        running.kill()
        running.communicate()


def test_the_library_cancels_from_other_threads_and_lets_clips_go(build_dir: Path) -> None:
    check = build_dir / "vexpress_client_check"
    built = _call("cmake", "--build", build_dir.parents[1], "--target", check.name)
    assert built.returncode == 0, built.stdout
    valgrind = ("valgrind", "--quiet", "--error-exitcode=99") if shutil.which("valgrind") else ()
    with fake_triton(_endless) as server:
        done = _call(*valgrind, check, server.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize("script", [whole_clip, lambda inputs: iter([info(), frame(0), error("failed: died.")])],
                         ids=["whole clip", "failure"])  # fmt: skip
def test_no_leaks_and_no_invalid_accesses_under_valgrind(program: Path, flags: list[str], script: Any) -> None:
    if not shutil.which("valgrind"):
        pytest.skip("needs valgrind")
    with fake_triton(script) as server:
        done = _call("valgrind", "--quiet", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect",
                     "--show-leak-kinds=definite,indirect", "--error-exitcode=99",
                     program, *flags, "--server", server.url, "--quiet")  # fmt: skip
    assert done.returncode == (0 if script is whole_clip else 2), done.stderr
    assert "==" not in done.stderr


def test_a_real_servers_frames_are_those_of_a_local_run(
    program: Path, server: Served, short_clip: GenerationRequest, local: GenerationRequest, tmp_path: Path
) -> None:
    names = ("fps", "num_inference_steps", "guidance_scale", "context_overlap", "seed")
    settings = json.dumps({name: getattr(short_clip, name) for name in names})
    given = {
        "server": server.url,
        "token": server.token,
        "portrait": short_clip.reference_image_path,
        "audio": short_clip.audio_path,
        "kps": short_clip.kps_path,
        "settings": settings,
        "output": tmp_path / "out.rgb",
    }
    done = _call(program, *(word for name, value in given.items() for word in (f"--{name}", value)))
    assert done.returncode == 0, done.stderr
    expected = b"".join(frame.image.tobytes() for frame in generate(local))
    assert (tmp_path / "out.rgb").read_bytes() == expected


def test_both_clients_declare_the_same_messages(build_dir: Path, tmp_path: Path) -> None:
    done = _call("protoc", "-I", ROOT / "serving" / "cpp", f"--descriptor_set_out={tmp_path / 'set'}", "kserve.proto")
    assert done.returncode == 0, done.stderr
    file = FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file[0]
    of_python = FileDescriptorProto()
    wire.POOL.FindFileByName("vexpress_kserve.proto").CopyToProto(of_python)
    of_cpp = _fields(file)
    assert {name: of_cpp[name] for name in _fields(of_python)} == _fields(of_python)
    assert f"/{file.package}.{file.service[0].name}/{file.service[0].method[1].name}" == wire.STREAM_METHOD


def test_the_messages_are_tritons_own() -> None:
    """Names, numbers and types are those of Triton's own client, which lives beside ours in one process."""
    service = pytest.importorskip("tritonclient.grpc.service_pb2", reason="needs tritonclient")
    theirs, ours = FileDescriptorProto(), FileDescriptorProto()
    service.DESCRIPTOR.CopyToProto(theirs)
    wire.POOL.FindFileByName("vexpress_kserve.proto").CopyToProto(ours)
    for message, fields in _fields(ours).items():
        assert fields.items() <= _fields(theirs)[message].items()


def test_bindings_of_a_bundle_are_printed(build_dir: Path, tmp_path: Path) -> None:
    program = build_dir / "print_bindings"
    if not program.exists():
        pytest.skip("needs nlohmann_json")
    from vexpress_trt.models.box.box import is_shipped, shipped_bundle

    if not is_shipped():
        pytest.skip("the model in the box is not there")
    done = _call(program, shipped_bundle())
    assert done.returncode == 0, done.stderr
    manifest = json.loads((Path(shipped_bundle()) / "manifest.json").read_text())
    lines = done.stdout.splitlines()
    tensors = sum(len(graph["inputs"]) + len(graph["outputs"]) for graph in manifest["graphs"])
    assert len(lines) == 1 + len(manifest["graphs"]) + tensors
    assert any(line.startswith("  <- latents float") and "F" in line for line in lines)
    refused = _call(program, tmp_path)
    assert refused.returncode == 2 and "there is no manifest.json" in refused.stderr


@pytest.mark.parametrize(
    "record", [Manifest, ModelConfig, SchedulerConfig, GraphSpec, TensorSpec, FileRecord, Sidecar, EngineKey, Binding]
)
def test_the_page_for_cpp_hosts_describes_every_field(record: type) -> None:
    page = (ROOT / "serving" / "cpp" / "MANIFEST.md").read_text()
    for field in dataclasses.fields(record):
        prefixes = ("", "key.") if record is EngineKey else ("",)
        assert any(f"`{prefix}{field.name}`" in page or f'"{prefix}{field.name}"' in page for prefix in prefixes)


def _fields(file: FileDescriptorProto) -> dict[str, dict[str, tuple]]:
    found: dict[str, dict[str, tuple]] = {}

    def collect(message: Any, prefix: str) -> None:
        name = prefix + message.name
        found[name] = {f.name: (f.number, f.type, f.label, f.type_name) for f in message.field}
        for nested in message.nested_type:
            collect(nested, name + ".")

    for message in file.message_type:
        collect(message, "")
    return found
