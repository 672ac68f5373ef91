"""Who may import whom: every module of a room is imported in a fresh interpreter and what came along is looked at."""

import json
import subprocess
import sys
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


def test_help_answers_without_heavy_libraries() -> None:
    loaded = _loaded_by("import contextlib, io\nfrom vexpress_trt import cli\n"
                        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
                        "    cli.main(['generate', '--help'])")  # fmt: skip
    heavy = {"numpy", "cv2", "av", "PIL", "onnx", "onnxruntime", "openvino", "rich"} | TORCH_STACK
    assert not loaded & heavy


def test_a_refused_argument_answers_without_heavy_libraries() -> None:
    loaded = _loaded_by("import contextlib, io, sys\nfrom vexpress_trt.runtime.request import GenerationRequest\n"
                        "from vexpress_trt.engines.errors import UserError\n"
                        "try:\n    GenerationRequest(reference_image_path='a', audio_path='b', image_width=100).validate()\n"
                        "    sys.exit('not refused')\n"
                        "except UserError:\n    pass")  # fmt: skip
    assert not loaded & {"numpy", "cv2", "av", "onnxruntime", "openvino"}
