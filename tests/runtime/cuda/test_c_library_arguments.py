"""What the C library refuses before it enqueues anything, with a GPU or without; its functions are read in its header.

A call that passes is told apart, where there is no GPU, by CUDA's own error.
"""

import ctypes
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from vexpress_trt.engines.gpu import gpu_status
from vexpress_trt.runtime.cuda import nvrtc

ROOT = Path(__file__).resolve().parents[3]
CUDA = ROOT / "runtime" / "native" / "cuda"
HEADER = (CUDA / "vexpress_cuda.h").read_text()
TYPES = {
    "int": ctypes.c_int,
    "vexpress_dtype": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float,
}
ITEMS = {"void": 1, "uint8_t": 1, "int32_t": 4, "float": 4}
REFUSED, NO_DRIVER, NO_GPU = 1, 35, 100  # cudaErrorInvalidValue, InsufficientDriver, NoDevice
FLOAT32, FLOAT16, BFLOAT16, UINT8 = range(4)


def declared() -> dict[str, dict[str, str]]:
    """The type of every argument of every function that enqueues work, by their names."""
    functions = {}
    for name, arguments in re.findall(r"VEXPRESS_API int vexpress_(\w+)\(([^)]*)\)", HEADER):
        split = [re.fullmatch(r"(?:const )?(\w+ \*?)(\w+)", " ".join(one.split())) for one in arguments.split(",")]
        if "stream" in arguments:
            functions[name] = {match[2]: match[1].strip() for match in split if match}
    return functions


FUNCTIONS = declared()
POINTERS = [(name, at) for name, types in FUNCTIONS.items() for at, kind in types.items() if kind.endswith("*")]
SIZES = [(name, size) for name, types in FUNCTIONS.items() for size, kind in types.items() if kind == "int64_t"]
DTYPES = [(name, at) for name, types in FUNCTIONS.items() for at, kind in types.items() if kind == "vexpress_dtype"]
OPTIONAL = {("step_window", "history"), ("to_rgb8", "status")}
AT_LEAST_ONE = {("gather_latents", "slots"), ("step_window", "halves"), ("step_window", "most")}

Call = Callable[..., int]


@pytest.fixture(scope="module")
def call(kernel_library: Path) -> Call:
    """Calls a function with arguments that fit, addresses made up, but for those that are given."""
    library = ctypes.CDLL(str(kernel_library))

    def function(name: str, **given: int) -> int:
        types, values = [], []
        for number, (argument, kind) in enumerate(FUNCTIONS[name].items()):
            types.append(ctypes.c_void_p if kind.endswith("*") else TYPES[kind])
            fitting = 0 if argument == "stream" else (number + 1) << 20 if kind.endswith("*") else 1
            values.append(given.get(argument, fitting))
        enqueue = getattr(library, f"vexpress_{name}")
        enqueue.argtypes = types
        return enqueue(*values)

    return function


@pytest.fixture
def without_gpu() -> None:
    """Skips where made-up addresses would reach a GPU."""
    if not gpu_status().reason:
        pytest.skip("there is a GPU")


def test_the_header_declares_a_function_for_every_kernel() -> None:
    assert set(FUNCTIONS) == {re.sub("_b?float(16|32)$", "", name) for name in nvrtc.KERNELS}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_that_fit_reach_cuda(without_gpu: None, call: Call, name: str) -> None:
    assert call(name) in (NO_DRIVER, NO_GPU)


@pytest.mark.parametrize(("name", "pointer"), [each for each in POINTERS if each[1] != "stream"])
def test_null_is_refused_unless_it_is_allowed(call: Call, name: str, pointer: str) -> None:
    if (name, pointer) not in OPTIONAL:
        assert call(name, **{pointer: 0}) == REFUSED
    elif gpu_status().reason:
        assert call(name, **{pointer: 0}) in (NO_DRIVER, NO_GPU)


@pytest.mark.parametrize(
    ("name", "pointer"), [each for each in POINTERS if ITEMS[FUNCTIONS[each[0]][each[1]].split()[0]] > 1]
)
def test_an_address_between_elements_is_refused(call: Call, name: str, pointer: str) -> None:
    assert call(name, **{pointer: (1 << 20) + 2}) == REFUSED


@pytest.mark.parametrize(
    ("name", "argument", "dtype", "pointer"),
    [
        ("gather_latents", "out_dtype", BFLOAT16, "out"),
        ("step_window", "prediction_dtype", FLOAT16, "prediction"),
        ("to_rgb8", "dtype", FLOAT16, "decoded"),
        ("draw_keypoints", "out_dtype", FLOAT32, "out"),
        ("draw_keypoints", "points_float64", 0, "points"),
    ],
)
def test_an_address_between_elements_of_the_type_given_is_refused(
    call: Call, name: str, argument: str, dtype: int, pointer: str
) -> None:
    assert call(name, **{argument: dtype, pointer: (1 << 20) + 1}) == REFUSED


@pytest.mark.parametrize("size", [-1, -(1 << 63), 1 << 49, (1 << 63) - 1])
@pytest.mark.parametrize(("name", "argument"), SIZES)
def test_a_size_that_no_array_has_is_refused(call: Call, name: str, argument: str, size: int) -> None:
    assert call(name, **{argument: size}) == REFUSED


def test_sizes_that_overflow_together_or_in_a_kernel_are_refused(call: Call) -> None:
    assert call("median", height=1 << 32, width=1 << 32) == REFUSED
    assert call("rgb_to_nv12", height=1 << 40, width=1 << 40) == REFUSED
    assert call("step_window", frames=1 << 24, size=1 << 30) == REFUSED
    assert call("draw_keypoints", height=1 << 31) == REFUSED
    assert call("noise", size=(1 << 34) + 1) == REFUSED


@pytest.mark.parametrize(("name", "argument"), SIZES)
def test_without_elements_there_is_nothing_to_do(call: Call, name: str, argument: str) -> None:
    assert call(name, **{argument: 0}) == (REFUSED if (name, argument) in AT_LEAST_ONE else 0)


def test_arrays_without_elements_may_be_null(call: Call) -> None:
    assert call("noise", out=0, size=0) == 0
    assert call("median", previous=0, current=0, next=0, out=0, height=0) == 0


@pytest.mark.parametrize("dtype", [-1, 4, 1000])
@pytest.mark.parametrize(("name", "argument"), DTYPES)
def test_an_unknown_type_is_refused(call: Call, name: str, argument: str, dtype: int) -> None:
    assert call(name, **{argument: dtype}) == REFUSED


@pytest.mark.parametrize(("name", "argument"), [each for each in DTYPES if each[0] != "draw_keypoints"])
def test_only_guide_images_are_bytes(call: Call, name: str, argument: str) -> None:
    assert call(name, **{argument: UINT8}) == REFUSED


def test_guide_images_are_of_every_type(without_gpu: None, call: Call) -> None:
    for dtype in (FLOAT32, FLOAT16, BFLOAT16, UINT8):
        assert call("draw_keypoints", out_dtype=dtype) in (NO_DRIVER, NO_GPU)


@pytest.mark.parametrize("frame", ["previous", "current", "next"])
def test_the_median_does_not_write_into_what_it_reads(call: Call, frame: str) -> None:
    assert call("median", out=1 << 30, **{frame: 1 << 30}) == REFUSED


def test_predictions_have_one_half_or_two(without_gpu: None, call: Call) -> None:
    assert [call("step_window", halves=halves) == REFUSED for halves in (0, 1, 2, 3)] == [True, False, False, True]


def test_the_version_is_the_headers_and_the_packages(kernel_library: Path) -> None:
    of_header = [int(re.search(rf"VERSION_{part} (\d+)", HEADER)[1]) for part in ("MAJOR", "MINOR", "PATCH")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == ".".join(map(str, of_header))
    major, minor, patch = of_header
    assert ctypes.CDLL(str(kernel_library)).vexpress_cuda_version() == major * 10000 + minor * 100 + patch


def test_all_kernels_are_prepared() -> None:
    body = re.search(r"vexpress_cuda_prepare\(void\) {(.*?)\n}", (CUDA / "vexpress_cuda.cu").read_text(), re.DOTALL)[1]
    types = ("float32", "float16", "bfloat16")
    typed = [f"{name}_{dtype}" for name in re.findall(r"OF_EACH\((\w+)\)", body) for dtype in types]
    assert sorted(typed + re.findall(r"vx_(\w+)", body)) == sorted(nvrtc.KERNELS)


def test_preparing_tells_whether_there_is_a_gpu(kernel_library: Path) -> None:
    expected = (NO_DRIVER, NO_GPU) if gpu_status().reason else (0,)
    assert ctypes.CDLL(str(kernel_library)).vexpress_cuda_prepare() in expected


def test_every_code_has_words(kernel_library: Path) -> None:
    library = ctypes.CDLL(str(kernel_library))
    library.vexpress_cuda_error_string.restype = ctypes.c_char_p
    assert library.vexpress_cuda_error_string(209) == b"no kernel image is available for execution on the device"
    for code in (-1, 123456, (1 << 31) - 1):
        assert library.vexpress_cuda_error_string(code) == b"unrecognized error code"
