"""Which backend, which graphs, which arithmetic."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from vexpress_trt.engines import selection
from vexpress_trt.engines.bundle import Bundle
from vexpress_trt.engines.cpu import Cpu
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.gpu import Gpu, GpuStatus
from vexpress_trt.engines.selection import (
    EngineChoice,
    available_backends,
    choose_backend,
    choose_engines,
    choose_precision,
    engine_class,
)

NO_DRIVER = GpuStatus(None, (), "no NVIDIA driver")
TWO_GPUS = GpuStatus("13.0", tuple(Gpu(i, "H100", 80 << 30, (9, 0)) for i in range(2)), "")
ALL = {"openvino": "2026.4", "onnxruntime": "1.31", "torch": "2.13.0", "cuda-bindings": "13.5"}


class Machine:
    """A machine with chosen packages, processor and GPUs, and bundles with chosen precisions."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self._patch = monkeypatch
        self.has()

    def has(self, packages: dict[str, str] = ALL, *, amx: bool = False, gpu: GpuStatus = NO_DRIVER) -> None:
        flags = ("amx_tile", "amx_bf16") if amx else ()
        self._patch.setattr(selection, "cpu", lambda: Cpu("Xeon", flags))
        self._patch.setattr(selection, "gpu_status", lambda: gpu)
        self._patch.setattr(selection, "find_spec", lambda name: packages.get(name))
        self._patch.setattr(
            selection,
            "package_version",
            lambda *names: next((packages[name] for name in names if name in packages), None),
        )

    @staticmethod
    def choose(*precisions: str, **wishes) -> EngineChoice:
        def graph(name: str, precision: str) -> None:
            if precision not in precisions:
                raise UserError(f"add {precision}")

        return choose_engines(SimpleNamespace(precisions=precisions, graph=graph, root=Path("absent")), **wishes)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize(
    ("missing", "taken"),
    [((), "openvino"), (("openvino",), "onnxruntime"), (("openvino", "onnxruntime"), "torch")],
)
def test_auto_takes_the_first_that_is_installed_and_says_why(machine: Machine, missing: tuple, taken: str) -> None:
    machine.has({name: version for name, version in ALL.items() if name not in missing})
    name, reason = choose_backend()
    assert name == taken
    assert reason.startswith(f"{taken} {ALL[taken]} on Xeon: ")


@pytest.mark.parametrize(
    ("missing", "dtype", "taken", "why"),
    [
        ((), "fp32", "openvino", "the fastest here"),
        ((), "fp16", "onnxruntime", "the best here that computes in fp16"),
        (("openvino",), "fp16", "onnxruntime", "openvino is not installed"),
        (("openvino",), "bf16", "torch", "the best here that computes in bf16"),
    ],
)
def test_auto_takes_what_computes_in_the_type_asked_for(machine: Machine, missing, dtype, taken, why) -> None:
    machine.has({name: version for name, version in ALL.items() if name not in missing})
    name, reason = choose_backend(dtype=dtype)
    assert name == taken
    assert reason.endswith(why)


def test_a_type_that_nothing_here_computes_in_names_what_would(machine: Machine) -> None:
    machine.has({"onnxruntime": ALL["onnxruntime"]})
    with pytest.raises(
        UserError, match=r"no backend here computes in bf16: `pip install openvino` adds one; here work: onn"
    ):
        choose_backend(dtype="bf16")


def test_without_any_backend_the_command_that_helps_is_named(machine: Machine) -> None:
    machine.has({})
    with pytest.raises(UserError, match="no backend works here: install one with `pip install onnxruntime`"):
        choose_backend()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "openvino",
            "cannot run here: openvino is not installed; install it with `pip install openvino`; here work: onn",
        ),
        ("cpu", "there is no backend 'cpu'; here work: onnxruntime, torch"),
        ("torch:1", "there is no backend 'torch:1'"),
        ("tensorrt", "the backend tensorrt cannot run here: no NVIDIA driver"),
        ("tensorrt-rtx", "the backend tensorrt-rtx cannot run here: no NVIDIA driver"),
        ("torch-cuda", "the backend torch-cuda cannot run here: no NVIDIA driver"),
    ],
)
def test_what_cannot_run_is_refused_with_the_reason(machine: Machine, name: str, said: str) -> None:
    machine.has({name: version for name, version in ALL.items() if name != "openvino"})
    with pytest.raises(UserError, match=said):
        choose_backend(name)


@pytest.mark.parametrize(
    ("backend", "amx", "dtype", "precisions", "chosen"),
    [
        ("openvino", True, "auto", ("fp32", "fp16"), ("fp32", "bf16")),
        ("openvino", False, "auto", ("fp32", "fp16"), ("fp32", "fp32")),
        ("openvino", True, "fp32", ("fp16", "fp32"), ("fp32", "fp32")),
        ("openvino", False, "bf16", ("fp32",), ("fp32", "bf16")),
        ("openvino", True, "auto", ("fp16",), ("fp16", "bf16")),
        ("openvino", True, "auto", ("bf16",), ("bf16", "bf16")),
        ("onnxruntime", True, "auto", ("fp16", "fp32"), ("fp32", "fp32")),
        ("onnxruntime", True, "auto", ("fp16", "bf16"), ("fp16", "fp16")),
        ("onnxruntime", True, "fp16", ("fp32", "fp16"), ("fp16", "fp16")),
        ("torch", True, "auto", ("fp32", "fp16"), ("fp32", "fp32")),
        ("torch", True, "bf16", ("fp32", "bf16"), ("fp32", "bf16")),
        ("torch", True, "fp16", ("fp16",), ("fp16", "fp16")),
    ],
)
def test_graphs_and_arithmetic_follow_the_backend(machine: Machine, backend, amx, dtype, precisions, chosen) -> None:
    machine.has(amx=amx)
    choice = machine.choose(*precisions, backend=backend, dtype=dtype)
    assert (choice.backend, choice.precision, choice.dtype) == (backend, *chosen)
    assert choice.reason


@pytest.mark.parametrize(
    ("backend", "dtype", "precisions", "said"),
    [
        ("openvino", "fp32", ("fp16",), "add fp32"),
        ("torch", "fp32", ("fp16",), "add fp32"),
        ("onnxruntime", "fp32", ("fp16",), "add fp32"),
        ("onnxruntime", "fp16", ("fp32",), "add fp16"),
        ("onnxruntime", "auto", ("bf16",), "add fp32"),
        ("onnxruntime", "bf16", ("fp32", "bf16"), "onnxruntime cannot run bf16 on a CPU: choose --dtype fp32"),
        ("openvino", "fp16", ("fp16",), "openvino computes in fp32 or bf16 on a CPU"),
    ],
)
def test_what_cannot_be_computed_is_refused(machine: Machine, backend, dtype, precisions, said: str) -> None:
    with pytest.raises(UserError, match=said):
        machine.choose(*precisions, backend=backend, dtype=dtype)


def test_a_missing_precision_names_the_export_command(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="vexpress export --checkpoints DIR --bundle .* --precision fp16"):
        choose_engines(bundle, backend="onnxruntime", dtype="fp16")


@pytest.mark.parametrize("backend", ["auto", "torch", "onnxruntime"])
def test_cuda_without_a_driver_is_one_sentence(machine: Machine, backend: str) -> None:
    with pytest.raises(UserError, match="^--device cuda: no NVIDIA driver; leave it out to run on the CPU$"):
        machine.choose("fp32", backend=backend, device="cuda")


@pytest.mark.parametrize(("gpu_id", "backend"), [(0, "torch-cuda"), (1, "torch-cuda:1")])
def test_cuda_is_torch_on_the_gpu_that_was_asked_for(machine: Machine, gpu_id: int, backend: str) -> None:
    machine.has(gpu=TWO_GPUS)
    choice = machine.choose("fp32", "fp16", device="cuda", gpu_id=gpu_id, dtype="fp16")
    assert (choice.backend, choice.precision, choice.dtype) == (backend, "fp32", "fp16")
    assert choose_backend(backend)[0] == backend
    assert choose_precision(backend, ["fp16"]) == "fp16"


@pytest.mark.parametrize(
    ("packages", "wishes", "said"),
    [
        (ALL, {"gpu_id": 2}, "--gpu_id 2: there is no such GPU; the driver lists 2 GPUs: choose 0 to 1"),
        (ALL, {"gpu_id": -1}, "--gpu_id -1: there is no such GPU"),
        (ALL, {"backend": "openvino"}, "--backend openvino runs on CPUs: use --backend torch or onnxruntime"),
        (ALL, {"backend": "onnxruntime"}, "onnxruntime-gpu is not installed; install it with `pip uninstall"),
        ({"onnxruntime-gpu": "1.31"}, {"backend": "onnxruntime"}, "cuda-bindings is not installed"),
        ({"torch": "2.13.0+cpu"}, {}, "torch 2.13.0.cpu is built without CUDA; install it with `pip install .vexpress"),
        ({"torch": "2.13.0"}, {}, "cuda-bindings is not installed; install it with `pip install .vexpress"),
        ({}, {}, "torch is not installed; install it with `pip install .vexpress"),
    ],
)
def test_a_gpu_that_cannot_be_used_says_why(machine: Machine, packages: dict, wishes: dict, said: str) -> None:
    machine.has(packages, gpu=TWO_GPUS)
    with pytest.raises(UserError, match=said):
        machine.choose("fp32", device="cuda", **wishes)


def test_onnxruntime_on_a_gpu_computes_in_the_graphs_precision(machine: Machine) -> None:
    machine.has(ALL | {"onnxruntime-gpu": "1.31"}, gpu=TWO_GPUS)
    choice = machine.choose("fp32", "fp16", backend="onnxruntime", device="cuda", gpu_id=1)
    assert (choice.backend, choice.precision, choice.dtype, choice.gpu) == ("onnxruntime-cuda:1", "fp16", "fp16", 1)
    with pytest.raises(UserError, match="cannot run bf16 on its CUDA provider"):
        machine.choose("fp32", "bf16", backend="onnxruntime", device="cuda", dtype="bf16")


def test_a_gpu_backend_on_the_cpu_is_a_contradiction(machine: Machine) -> None:
    machine.has(gpu=TWO_GPUS)
    with pytest.raises(UserError, match="--backend torch-cuda runs on a GPU, --device is cpu"):
        machine.choose("fp32", backend="torch-cuda", device="cpu")


def test_a_gpu_number_beyond_the_last_is_no_backend(machine: Machine) -> None:
    machine.has(gpu=TWO_GPUS)
    with pytest.raises(UserError, match="there is no backend 'torch-cuda:2'"):
        choose_backend("torch-cuda:2")


@pytest.mark.parametrize("backend", ["torch-cuda:", "tensorrt:x"])
def test_a_gpu_that_is_no_number_is_refused_by_a_choice_as_well(machine: Machine, backend: str) -> None:
    machine.has(gpu=TWO_GPUS)
    with pytest.raises(UserError, match=f"there is no backend '{backend}'"):
        machine.choose("fp32", backend=backend)


@pytest.mark.parametrize(
    ("name", "packages", "capability", "said"),
    [
        ("tensorrt", {}, (9, 0), "tensorrt is not installed; install it with `pip install tensorrt-cu13`"),
        ("tensorrt", {"tensorrt_cu13": "11.4"}, (9, 0), "cuda-bindings is not installed; install it with"),
        ("tensorrt-rtx", {}, (8, 9), "tensorrt-rtx is not installed; install it with `pip install tensorrt_rtx_cu13_b"),
        ("tensorrt-rtx", {"tensorrt_rtx": "1.7"}, (9, 0), "cannot run here: it does not support a GPU; here work"),
    ],
)
def test_tensorrt_says_what_it_lacks(machine: Machine, name: str, packages: dict, capability, said: str) -> None:
    machine.has(packages, gpu=GpuStatus("13.0", (Gpu(0, "a GPU", 24 << 30, capability),), ""))
    with pytest.raises(UserError, match=said.replace("here work", "no backend works here")):
        choose_backend(name)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx:1"])
def test_tensorrt_runs_where_a_gpu_and_its_packages_are(machine: Machine, name: str) -> None:
    gpus = GpuStatus("13.0", tuple(Gpu(i, "RTX 4090", 24 << 30, (8, 9)) for i in range(2)), "")
    machine.has({"tensorrt": "11.4", "tensorrt_rtx": "1.7", "cuda-bindings": "13.5"}, gpu=gpus)
    assert choose_backend(name)[0] == name
    assert choose_precision(name, ["fp32", "fp16"]) == "fp16"
    assert engine_class(name).__name__ == "TensorRtEngine"


def test_the_table_names_every_backend_once_with_a_reason_where_it_is_not_usable(machine: Machine) -> None:
    table = available_backends()
    assert len({status.name for status in table}) == len(table) >= 7
    assert all(bool(status.reason) is not status.usable for status in table)


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        ("openvino", "OpenVinoEngine"),
        ("onnxruntime", "OnnxRuntimeEngine"),
        ("torch", "TorchEngine"),
        ("torch-cuda:1", "TorchDeviceEngine"),
        ("onnxruntime-cuda:1", "OnnxRuntimeDeviceEngine"),
    ],
)
def test_every_backend_has_its_engine(backend: str, kind: str) -> None:
    assert engine_class(backend).__name__ == kind


@pytest.mark.parametrize(
    ("backend", "on_cpu"),
    [("onnxruntime", True), ("openvino", True), ("torch", True), ("torch-cuda", False), ("torch-cuda:1", False)],
)
def test_a_choice_knows_whether_engines_share_the_processor(backend: str, on_cpu: bool) -> None:
    assert EngineChoice(backend, "as asked", "fp32", "fp32").on_cpu is on_cpu
