"""The torch engine: networks rebuilt from a bundle give what the exporter's own modules give."""

import functools
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from weakref import ref

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("torch", reason="needs the export extra")
pytest.importorskip("diffusers", reason="needs the export extra")

import torch  # noqa: E402

from vexpress_trt.engines.bundle import Bundle, write_bundle  # noqa: E402
from vexpress_trt.engines.engine import load_engine  # noqa: E402
from vexpress_trt.engines.errors import UserError  # noqa: E402
from vexpress_trt.engines.manifest import ModelConfig  # noqa: E402
from vexpress_trt.engines.torch_cuda_engine import TorchDeviceEngine  # noqa: E402
from vexpress_trt.engines.verify import vector_inputs  # noqa: E402
from vexpress_trt.export.checkpoints import Checkpoints  # noqa: E402
from vexpress_trt.export.graphs import Graph, graphs  # noqa: E402

GRAPHS = "audio_encoder audio_projection kps_guider vae_encoder reference denoiser_guided denoiser_single vae_decoder"
SMALL = {"B": 1, "F": 2, "h": 8, "w": 9, "N": 2, "S": 2000}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def by_name(checkpoints: Checkpoints) -> dict[str, Graph]:
    return {graph.name: graph for graph in graphs(checkpoints)}


@pytest.fixture
def store(checkpoints: Checkpoints, model_config: ModelConfig, save_graph: Callable, tmp_path: Path) -> Callable:
    """Writes a bundle of one graph that has the network's weights and no nodes of it: torch needs no more."""

    def write(graph: Graph, precision: str = "fp32", drop: str = "", networks: dict | None = None) -> Bundle:
        module = graph.build(checkpoints)
        spec = graph.spec(precision)
        dtype = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[precision]
        weights = {key: t.float().numpy().astype(dtype) for key, t in module.state_dict().items() if key != drop}
        values = [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in spec.inputs]
        results = [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in spec.outputs]
        own = checkpoints.networks
        known = {
            "unet": checkpoints.unet_config,
            "vae": checkpoints.vae_config,
            "wav2vec2": checkpoints.wav2vec2_config,
            "motion": asdict(own.motion),
            "guider": asdict(own.guider),
            "projection": asdict(own.projection),
        }
        with write_bundle(tmp_path / "x.bundle") as writer:
            path = writer.path(spec.path)
            save_graph(path, [], values, results, weights, graph.name)
            (path.parent / f"{graph.name}.data").rename(writer.path(spec.files[1]))
            _relocate(path, Path(spec.files[1]).name)
            writer.finish(
                producer="tests 1.0", model=model_config, graphs=(spec,), licence="none", provenance={},
                networks=known if networks is None else networks, random_weights=True,
            )  # fmt: skip
        return Bundle.open(tmp_path / "x.bundle")

    return write


def _relocate(path: Path, location: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def _module_outputs(graph: Graph, checkpoints: Checkpoints, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    with torch.inference_mode():
        module = graph.build(checkpoints).to(torch.float32)
        outputs = module(*graph.arguments([torch.from_numpy(array) for array in inputs.values()]))
    return [output.numpy() for output in (outputs if isinstance(outputs, (tuple, list)) else (outputs,))]


@pytest.mark.parametrize("name", GRAPHS.split())
def test_a_rebuilt_network_gives_what_the_exported_module_gives(
    name: str, by_name: dict[str, Graph], checkpoints: Checkpoints, store: Callable
) -> None:
    graph = by_name[name]
    inputs = vector_inputs(graph.spec("fp32"), SMALL)
    expected = _module_outputs(graph, checkpoints, inputs)
    with load_engine(store(graph), name, backend="torch", threads=1) as engine:
        outputs = engine.run(**inputs)
    assert list(outputs) == [tensor.name for tensor in graph.outputs]
    for output, wanted in zip(outputs.values(), expected, strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(output / scale, wanted / scale, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", "bf16"), ("fp16", "fp32"), ("bf16", "fp32"), ("bf16", "bf16")]
)
def test_it_computes_in_the_type_asked_for_and_answers_in_the_graphs(
    precision: str, dtype: str, by_name: dict[str, Graph], checkpoints: Checkpoints, store: Callable
) -> None:
    graph = by_name["denoiser_guided"]
    exact = _module_outputs(graph, checkpoints, vector_inputs(graph.spec("fp32"), SMALL))[0]
    settings = {"backend": "torch", "precision": precision, "dtype": dtype, "threads": 1}
    with load_engine(store(graph, precision), graph.name, **settings) as engine:
        assert next(engine._module.parameters()).dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
        prediction = engine.run(**vector_inputs(engine.spec, SMALL))["prediction"]
    assert prediction.dtype == np.float32
    error = 20 * np.log10(np.linalg.norm(exact) / np.linalg.norm(prediction - exact))
    least = {"fp32": 90, "fp16": 40, "bf16": 20}[precision]
    assert error > (least if dtype == "fp32" else 20)
    assert dtype == "fp32" or error < 60


def test_bfloat16_goes_in_and_out(by_name: dict[str, Graph], store: Callable) -> None:
    graph = by_name["reference"]
    with load_engine(store(graph, "bf16"), "reference", backend="torch", precision="bf16", threads=1) as engine:
        outputs = engine.run(**vector_inputs(engine.spec, SMALL))
    assert {array.dtype.name for array in outputs.values()} == {"bfloat16"}


def test_read_only_arrays_are_taken_without_a_warning(by_name: dict[str, Graph], store: Callable) -> None:
    graph = by_name["kps_guider"]
    inputs = vector_inputs(graph.spec("fp32"), SMALL)
    with load_engine(store(graph), graph.name, backend="torch", threads=1) as engine:
        expected = engine.run(**inputs)["feature"].copy()
        for array in inputs.values():
            array.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(engine.run(**inputs)["feature"], expected)


def test_a_missing_weight_is_named(by_name: dict[str, Graph], store: Callable) -> None:
    bundle = store(by_name["kps_guider"], drop="conv_out.bias")
    with pytest.raises(UserError, match="does not hold the weights of kps_guider .*conv_out.bias"):
        load_engine(bundle, "kps_guider", backend="torch", threads=1)


def test_a_bundle_without_configurations_is_refused(by_name: dict[str, Graph], store: Callable) -> None:
    bundle = store(by_name["kps_guider"], networks={})
    with pytest.raises(UserError, match="has no configuration 'guider'"):
        load_engine(bundle, "kps_guider", backend="torch", threads=1)


def test_a_shortened_weight_file_is_named(by_name: dict[str, Graph], store: Callable) -> None:
    bundle = store(by_name["kps_guider"])
    path = bundle.path("onnx/fp32/kps_guider.data")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="kps_guider.data ends before the data of"):
        load_engine(bundle, "kps_guider", backend="torch", threads=1)


def test_a_type_torch_has_no_name_for_is_refused(by_name: dict[str, Graph], store: Callable) -> None:
    with pytest.raises(UserError, match="torch computes in fp32, fp16, bf16, not in int8"):
        load_engine(store(by_name["kps_guider"]), "kps_guider", backend="torch", dtype="int8")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU that torch can use")
def test_without_a_gpu_it_says_so(by_name: dict[str, Graph], store: Callable) -> None:
    from vexpress_trt.engines.torch_engine import TorchEngine

    bundle = store(by_name["kps_guider"])
    with pytest.raises(UserError, match="finds no GPU it can use: leave out --device cuda"):
        TorchEngine(bundle, bundle.graph("kps_guider", "fp32"), backend="torch-cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a torch built for it")
def test_a_gpu_gives_the_same(by_name: dict[str, Graph], checkpoints: Checkpoints, store: Callable) -> None:
    graph = by_name["denoiser_guided"]
    inputs = vector_inputs(graph.spec("fp32"), SMALL)
    expected = _module_outputs(graph, checkpoints, inputs)[0]
    with load_engine(store(graph), graph.name, backend="torch-cuda") as engine:
        prediction = engine.run(**inputs)["prediction"]
    assert 20 * np.log10(np.linalg.norm(expected) / np.linalg.norm(prediction - expected)) > 40


@pytest.mark.parametrize("name", ["denoiser_guided", "vae_decoder"])
def test_on_buffers_it_gives_what_it_gives_on_arrays(name: str, by_name: dict[str, Graph], store: Callable) -> None:
    bundle = store(by_name[name])
    inputs = vector_inputs(by_name[name].spec("fp32"), SMALL)
    output = by_name[name].outputs[0].name
    with TorchDeviceEngine(bundle, bundle.graph(name, "fp32"), threads=1) as engine:
        expected = engine.run(**inputs)[output].copy()
        buffers = {key: array.copy() for key, array in inputs.items()} | {output: np.zeros_like(expected)}
        engine.bind_buffers(**buffers)
        for _ in range(2):
            buffers[output][...] = np.nan
            engine.enqueue(0)
            np.testing.assert_array_equal(buffers[output], expected)
        with pytest.raises(ValueError, match=f"{name}: there is no input or output 'nothing'"):
            engine.bind_buffers(nothing=expected)


@pytest.mark.parametrize(("name", "with_plans"), [("audio_encoder", False), ("vae_encoder", True)])
def test_speech_of_any_length_leaves_no_plans_of_attention(
    name: str, with_plans: bool, by_name: dict[str, Graph], store: Callable
) -> None:
    bundle = store(by_name[name])
    inputs = vector_inputs(by_name[name].spec("fp32"), SMALL)
    seen, allowed = [], torch.backends.cuda.cudnn_sdp_enabled
    assert allowed()
    with TorchDeviceEngine(bundle, bundle.graph(name, "fp32"), threads=1) as engine:
        hook = engine._module.register_forward_hook(lambda *_: seen.append(allowed()))
        engine.run(**inputs)
        hook.remove()
        assert seen == [with_plans] and allowed()
        engine._module.register_forward_hook(lambda *_: torch.zeros(2) + torch.zeros(3))
        with pytest.raises(RuntimeError, match="must match"):
            engine.run(**inputs)
    assert allowed()


@pytest.mark.parametrize("name", ["denoiser_guided", "denoiser_single"])
def test_a_denoiser_takes_its_fused_form_with_the_same_result(
    name: str, by_name: dict[str, Graph], store: Callable
) -> None:
    from vexpress_trt.export.nets.fused.denoiser import FusedDenoiser

    bundle = store(by_name[name])
    inputs = vector_inputs(by_name[name].spec("fp32"), SMALL)
    spec = bundle.graph(name, "fp32")
    with (
        TorchDeviceEngine(bundle, spec, threads=1) as plain,
        TorchDeviceEngine(bundle, spec, threads=1, fused=True) as fused,
    ):
        kinds = [isinstance(engine._module, FusedDenoiser) for engine in (plain, fused)]
        assert kinds == [False, True]  # by itself it does so on a GPU
        expected, prediction = (engine.run(**inputs)["prediction"] for engine in (plain, fused))
    np.testing.assert_allclose(prediction, expected, rtol=1e-4, atol=2e-5)


def test_a_gpu_without_triton_keeps_the_denoiser_as_it_is_and_says_why(
    by_name: dict[str, Graph], store: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vexpress_trt.export.nets.denoiser import Denoiser
    from vexpress_trt.export.nets.fused import operations

    bundle = store(by_name["denoiser_single"])
    monkeypatch.setattr(operations, "why_plain", lambda device: f"no Triton for {device}")
    with TorchDeviceEngine(bundle, bundle.graph("denoiser_single", "fp32"), threads=1) as engine:
        assert not caplog.records
        monkeypatch.setattr(engine, "_device", "cuda:1")
        engine._fuse(None)
        assert type(engine._module) is Denoiser
        monkeypatch.undo()
    assert caplog.messages == ["denoiser_single runs without fused kernels, and slower: no Triton for cuda:1"]


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SimpleNamespace]]:
    """Stands in for torch's captures on a GPU: what was asked for each, and whether its graph is alive."""
    from vexpress_trt.engines import torch_cuda_engine

    asked: list[SimpleNamespace] = []
    handles = iter(range(1, 100))

    class Recorded:
        pass

    @contextmanager
    def capture(graph: Recorded, *, pool: int, stream: int, capture_error_mode: str) -> Iterator[None]:
        alive = [one.pool for one in asked if one.graph() is not None]
        assert pool in alive or pool == max([0, *(one.pool for one in asked)]) + 1, "torch has freed this pool"
        asked.append(SimpleNamespace(graph=ref(graph), pool=pool, stream=stream, mode=capture_error_mode))
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda stream, device: stream)
    monkeypatch.setattr(TorchDeviceEngine, "_current", lambda engine, stream: nullcontext())
    torch_cuda_engine._graph_memory.cache_clear()
    yield asked
    torch_cuda_engine._graph_memory.cache_clear()


def test_graphs_of_one_stream_share_their_memory_as_long_as_one_of_them_lives(
    by_name: dict[str, Graph], store: Callable, captures: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = store(by_name["kps_guider"])
    with TorchDeviceEngine(bundle, bundle.graph("kps_guider", "fp32"), threads=1) as engine:
        monkeypatch.setattr(engine, "_device", "cuda:0")
        guided, single, decoder = (engine.capture(stream, lambda: None) for stream in (7, 7, 8))
        one, other, elsewhere = captures
        assert one.pool == other.pool != elsewhere.pool  # the decoder runs at the same time
        assert (one.stream, elsewhere.stream, one.mode) == (7, 8, "thread_local")
        del guided
        later = engine.capture(7, lambda: None)
        assert captures[-1].pool == one.pool
        del single, later
        after = engine.capture(7, lambda: None)
        assert captures[-1].pool not in (one.pool, elsewhere.pool)
        del after, decoder
        monkeypatch.setattr(engine, "_device", "cpu")
    assert not any(one.graph() for one in captures)


@pytest.mark.parametrize("ended", [False, True])
def test_a_capture_that_fails_leaves_nothing_behind_in_torchs_allocator(
    by_name: dict[str, Graph], store: Callable, captures: list, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    calls = []

    def end(device: int, handle: int) -> None:
        calls.append(("end", device, handle))
        if ended:
            raise RuntimeError("not currently recording to mempool_id")

    def fails() -> None:
        raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    released = lambda device, handle: calls.append(("release", device, handle))  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_releasePool", released, raising=False)
    bundle = store(by_name["kps_guider"])
    with TorchDeviceEngine(bundle, bundle.graph("kps_guider", "fp32"), threads=1) as engine:
        monkeypatch.setattr(engine, "_device", "cuda:1")
        with pytest.raises(UserError, match=r"torch cannot capture kps_guider .*\(operation failed"):
            engine.capture(7, fails)
        monkeypatch.setattr(engine, "_device", "cpu")
    handle = captures[0].pool
    assert calls == [("end", 1, handle), *([] if ended else [("release", 1, handle)])]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a torch built for it")
def test_graphs_that_share_memory_give_on_a_gpu_what_each_gives_alone(
    by_name: dict[str, Graph], store: Callable, tmp_path: Path
) -> None:
    stream = torch.cuda.Stream()
    runs, outputs, expected = [], [], []
    for name, image in (("denoiser_guided", 9), ("denoiser_single", 12)):
        bundle = store(by_name[name])
        shutil.move(bundle.root, tmp_path / name)
        bundle = Bundle.open(tmp_path / name)
        inputs = vector_inputs(by_name[name].spec("fp32"), SMALL | {"w": image})
        engine = TorchDeviceEngine(bundle, bundle.graph(name, "fp32"), backend="torch-cuda")
        engine.bind(**inputs)
        shape = engine.output_shape(engine.spec.outputs[0], SMALL | {"w": image})
        outputs.append(torch.zeros(shape, device="cuda"))
        engine.bind_buffers(prediction=outputs[-1])
        torch.cuda.synchronize()
        work = functools.partial(engine.enqueue, stream.cuda_stream)
        work()
        stream.synchronize()
        expected.append(outputs[-1].clone())
        runs.append(engine.capture(stream.cuda_stream, work))
    for number in (1, 0, 0, 1, 0):
        outputs[number].fill_(float("nan"))
        torch.cuda.synchronize()
        runs[number]()
        stream.synchronize()
        assert torch.equal(outputs[number], expected[number])
