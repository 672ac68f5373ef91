"""A bundle that is small enough to make for every test: one convolution with its weights beside the graph."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_model import SMALL_MODEL

from vexpress_trt.engines.bundle import Bundle, write_bundle
from vexpress_trt.engines.manifest import PRECISION_DTYPE, GraphSpec, ModelConfig, TensorSpec

if TYPE_CHECKING:
    from vexpress_trt.export.checkpoints import Checkpoints

NAMES = {"producer": "tests 1.0", "licence": "none", "provenance": {"checkpoints": {"a.bin": "12" * 32}}}
WEIGHT = (np.arange(16, dtype=np.float32).reshape(4, 4) - 7.5) / 8
ELEMENT = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is remembered in the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="module")
def checkpoints(golden_dir: Path) -> "Checkpoints":
    """The tiny golden model, as the exporter reads it."""
    from vexpress_trt.export.checkpoints import load_checkpoints

    return load_checkpoints(golden_dir / "model_ckpts", hash_files=False)


@pytest.fixture
def model_config() -> ModelConfig:
    return SMALL_MODEL


@pytest.fixture
def save_graph() -> Callable[..., None]:
    """Writes nodes as an ONNX file at a path, with large tensors in a `.data` file beside it."""

    def save(path: Path, nodes: list, inputs: list, outputs: list, weights: dict[str, np.ndarray], name: str) -> None:
        initializers = [_tensor(key, array) for key, array in weights.items()]
        graph = helper.make_graph(nodes, name, inputs, outputs, initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.stem}.data", size_threshold=0)

    return save


@pytest.fixture
def make_bundle(save_graph: Callable[..., None]) -> Callable[..., Bundle]:
    """Writes and opens a bundle whose graph `vae_decoder` is image = weight x latents + feature (see `expected`)."""

    def make(root: Path, precisions: Iterable[str] = ("fp32",), keep: Bundle | None = None) -> Bundle:
        with write_bundle(root, keep=keep) as writer:
            specs = tuple(_write_graph(writer, save_graph, precision) for precision in precisions)
            writer.finish(model=SMALL_MODEL, graphs=specs, networks={}, random_weights=True, **NAMES)
        return Bundle.open(root)

    return make


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle], tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "small.bundle")


@pytest.fixture
def example() -> Callable[..., SimpleNamespace]:
    """Inputs for the graph of `make_bundle` and the output it must give."""

    def make(precision: str = "fp32", count: int = 2, height: int = 3, width: int = 5) -> SimpleNamespace:
        random = np.random.default_rng(count * 100 + height)
        shape = (count, 4, height, width)
        latents = random.standard_normal(shape, np.float32)
        feature = random.standard_normal(shape, np.float32).astype(_numpy(precision))
        image = np.einsum("oc,nchw->nohw", WEIGHT, latents) + feature.astype(np.float32)
        return SimpleNamespace(inputs={"latents": latents, "feature": feature}, image=image)

    return make


def _write_graph(writer, save_graph, precision: str) -> GraphSpec:
    dtype = PRECISION_DTYPE[precision]
    shape = ("N", 4, "h", "w")
    path = f"onnx/{precision}/vae_decoder.onnx"
    nodes = [
        helper.make_node("Cast", ["latents"], ["typed"], name="cast", to=ELEMENT[dtype]),
        helper.make_node("Conv", ["typed", "conv.weight"], ["convolved"], name="conv"),
        helper.make_node("Add", ["convolved", "feature"], ["image"], name="add"),
    ]
    inputs = [
        helper.make_tensor_value_info("latents", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("feature", ELEMENT[dtype], shape),
    ]
    outputs = [helper.make_tensor_value_info("image", ELEMENT[dtype], shape)]
    weight = WEIGHT.reshape(4, 4, 1, 1).astype(_numpy(precision))
    save_graph(writer.path(path), nodes, inputs, outputs, {"conv.weight": weight}, "vae_decoder")
    return GraphSpec(
        "vae_decoder",
        precision,
        path,
        (TensorSpec("latents", "float32", shape), TensorSpec("feature", dtype, shape)),
        (TensorSpec("image", dtype, shape),),
        (path, f"onnx/{precision}/vae_decoder.data"),
        {"snr_db": 120.0, "max_abs": 1e-6, "backend": "onnxruntime"},
    )


def _numpy(precision: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if precision == "bf16" else PRECISION_DTYPE[precision])


def _tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)
