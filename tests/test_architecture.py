"""Who may import whom: every module of a room is imported in a fresh interpreter and what came along is looked at."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TORCH_STACK = {"torch", "diffusers", "transformers"}
FORBIDDEN = {
    "engines": TORCH_STACK | {"vexpress_trt.runtime", "vexpress_trt.export"},
    "runtime": TORCH_STACK | {"vexpress_trt.export"},
    "export": {"vexpress_trt.runtime"},
}


def _modules(room: str) -> list[str]:
    files = [path for path in sorted((ROOT / room).rglob("*.py")) if "native" not in path.parts]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    return ["vexpress_trt." + name.removesuffix(".__init__") for name in names]


def _loaded_by(statement: str) -> set[str]:
    code = f"import json, sys\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_no_module_of_a_room_imports_what_is_forbidden_to_it(room: str) -> None:
    modules = _modules(room)
    assert len(modules) > 1
    loaded = _loaded_by("\n".join(f"import {module}" for module in modules))
    found = {name for name in loaded for bad in FORBIDDEN[room] if name == bad or name.startswith(bad + ".")}
    assert not found


HELP = """
import contextlib, io
from vexpress_trt import cli
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    cli.main(["generate", "--help"])
"""
REFUSAL = """
from vexpress_trt import cli
arguments = ["generate", "--reference_image_path", "a.png", "--audio_path", "b.wav", "--image_width", "100"]
assert cli.main(arguments) == 2
"""


@pytest.mark.parametrize("statement", [HELP, REFUSAL], ids=["help", "refused argument"])
def test_the_command_line_answers_without_heavy_libraries(statement: str) -> None:
    heavy = {"numpy", "cv2", "av", "PIL", "onnx", "onnxruntime", "openvino", "rich", "psutil"} | TORCH_STACK
    assert not _loaded_by(statement) & heavy


def test_the_runtimes_public_names_come_without_the_export_stack() -> None:
    names = "from vexpress_trt.runtime import Frame, Generation, GenerationRequest, Summary, generate, write_video"
    assert not {name.split(".")[0] for name in _loaded_by(names)} & TORCH_STACK


def test_what_others_made_comes_with_its_licence() -> None:
    rooms = ("bench", "engines", "export", "models", "runtime", "serving")
    notices = {path.relative_to(ROOT).as_posix() for room in rooms for path in (ROOT / room).rglob("LICENSE*")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["license-files"]) == {"LICENSE"} | notices
    assert {"models/mtcnn/LICENSE", "runtime/native/LICENSE.nanobind"} <= notices
