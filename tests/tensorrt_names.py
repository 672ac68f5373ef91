"""Which names of TensorRT's Python API our code uses, and whether real bindings have them: no GPU, no libraries needed.

The wheels `tensorrt_cu13_bindings` and `tensorrt_cu12_bindings` hold the API alone. They import when libraries of the
right names are loaded, so empty ones are compiled in their place: classes, methods and enumerations are then all there,
only nothing can be built. As a program it writes the table of what was verified:

    python tests/tensorrt_names.py WHEEL.whl ... > tests/engines/trt/api_names.json
"""

import ast
import ctypes
import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

SOURCES = Path(__file__).resolve().parents[1] / "engines" / "trt"
# What a variable of this name is, in every function of the sources that names TensorRT's module `trt`.
ROLES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "shapes": "IOptimizationProfile",
    "layer": "ILayer",
    "boundary": "IAttentionInputLayer",
    "tensor": "ITensor",
    "error": "ParserError",
    "attention": "IAttention",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
    "timings": "ITimingCache",
}
_LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
_ENTRY_POINTS = (
    "createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL createNvOnnxParser_INTERNAL "
    "createNvOnnxParserRefitter_INTERNAL getBuilderPluginRegistry getNvOnnxParserVersion getPluginRegistry "
    "initLibNvInferPlugins"
).split()


def used_names(folder: Path = SOURCES) -> list[str]:
    """All names used in the sources, as "Class", "Class.member" or "Enumeration.VALUE"."""
    names: set[str] = set()
    for path in sorted(folder.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if re.search(r"\btrt: |\b_?trt = |\bconfig: Any", source):
            names |= names_in(source)
    return sorted(names)


def names_in(source: str) -> set[str]:
    """Those of one module. Raises ValueError for an object of TensorRT's in a variable that `ROLES` does not have."""
    names: set[str] = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = _name(node)
            if name is not None:
                names.add(name)
        elif isinstance(node, ast.ClassDef):
            bases = [name for base in node.bases if (name := _name(base)) is not None]
            methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
            names |= {f"{base}.{method}" for base in bases for method in methods if not method.startswith("_")}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            owner, attribute = node.args[:2]
            if isinstance(attribute, ast.Constant) and (name := _name(owner)) is not None:
                names.add(f"{name}.{attribute.value}")
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            _require_roles(node)
    return {name for name in names if name and "__" not in name}


def missing(trt: ModuleType, names: Iterable[str]) -> list[str]:
    """Those of `names` that these bindings do not have."""

    def has(name: str) -> bool:
        owner: object = trt
        for part in name.split("."):
            if not hasattr(owner, part):
                return False
            owner = getattr(owner, part)
        return True

    return [name for name in names if not has(name)]


def c_compiler() -> str | None:
    """The C compiler of this machine."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def load_bindings(folder: Path) -> ModuleType:
    """Import `tensorrt_bindings` from a folder, on empty libraries. Raises RuntimeError where no C compiler is there.

    A process can import one version only.
    """
    major = _version(folder).split(".")[0]
    compiler = c_compiler()
    if compiler is None:
        raise RuntimeError("there is no C compiler")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "empty.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _ENTRY_POINTS))
        for library in _LIBRARIES:
            name = f"lib{library}.so.{major}"
            command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(source.with_name(name))]
            subprocess.run([*command, str(source)], check=True)
            ctypes.CDLL(str(source.with_name(name)), ctypes.RTLD_GLOBAL)
        sys.path.insert(0, str(folder))
        try:
            return importlib.import_module("tensorrt_bindings")
        finally:
            sys.path.remove(str(folder))


def check_folder(folder: Path) -> dict[str, object]:
    """{version, missing} of the bindings in a folder, found by a process of its own."""
    result = subprocess.run(
        [sys.executable, __file__, "--folder", str(folder)], capture_output=True, text=True, timeout=60
    )
    if result.returncode:
        raise RuntimeError(result.stderr.strip().splitlines()[-1])
    return json.loads(result.stdout)


def _name(node: ast.expr) -> str | None:
    """What an expression names in the API: "" for the module itself, None for what is not TensorRT's."""
    if isinstance(node, ast.Name):
        return "" if node.id == "trt" else ROLES.get(node.id)
    if isinstance(node, ast.Attribute):
        if node.attr in ("_trt", "module"):
            return ""
        owner = _name(node.value)
        if owner is not None:
            return f"{owner}.{node.attr}".lstrip(".")
    return None


def _require_roles(node: ast.Assign) -> None:
    function = node.value.func
    target = node.targets[0]
    creates = isinstance(function, ast.Attribute) and (
        function.attr.startswith(("create_", "get_")) or function.attr[0].isupper()
    )
    if creates and _name(function) is not None and isinstance(target, ast.Name) and target.id not in ROLES:
        raise ValueError(f"line {node.lineno}: give {target.id} a role, or call it as its kind is called elsewhere")


def _version(folder: Path) -> str:
    text = (folder / "tensorrt_bindings" / "__init__.py").read_text(encoding="utf-8")
    return text.split('__version__ = "')[1].split('"')[0]


def _main(arguments: list[str]) -> None:
    if arguments[0] == "--folder":
        folder = Path(arguments[1])
        print(json.dumps({"version": _version(folder), "missing": missing(load_bindings(folder), used_names())}))
        return
    verified = {}
    for wheel in arguments:
        with tempfile.TemporaryDirectory() as folder:
            zipfile.ZipFile(wheel).extractall(folder)
            found = check_folder(Path(folder))
            verified[f"{Path(wheel).name.split('-')[0]} {found['version']}"] = found["missing"]
    print(json.dumps({"names": used_names(), "missing": verified}, indent=1))


if __name__ == "__main__":
    _main(sys.argv[1:])
