"""Inside torch: what its modules return is held to the tensors of the graph, each to its own."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch", reason="needs the export extra")
pytest.importorskip("diffusers", reason="needs the export extra")

import torch  # noqa: E402
from torch import nn  # noqa: E402

from vexpress_trt import cli  # noqa: E402
from vexpress_trt.engines import torch_engine  # noqa: E402
from vexpress_trt.engines.bisect import bisect, signal_to_error  # noqa: E402
from vexpress_trt.engines.bundle import Bundle  # noqa: E402
from vexpress_trt.engines.inside import Side, look_inside  # noqa: E402
from vexpress_trt.engines.verify import read_vectors, vector_path  # noqa: E402
from vexpress_trt.export.checkpoints import Checkpoints  # noqa: E402
from vexpress_trt.export.graphs import graphs  # noqa: E402

TORCH, REFERENCE = Side("torch", "fp32"), Side("onnxruntime", "fp32")
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.LayerNorm, nn.GroupNorm)
GRAPHS = (
    "audio_encoder audio_projection kps_guider vae_encoder reference denoiser_guided denoiser_single vae_decoder"
).split()
# Its statistics are computed from those of the whole clip: it is never called, and no node is a group norm.
NEVER_CALLED = {"audio_encoder": ["model.feature_extractor.conv_layers.0.layer_norm"]}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bundle(golden_bundle: Path) -> Bundle:
    return Bundle.open(golden_bundle)


@pytest.fixture
def wrong_weight(monkeypatch: pytest.MonkeyPatch):
    """Changes one number of a weight, on torch's side alone."""

    def change(name: str) -> None:
        genuine = torch_engine.initializer_arrays

        def arrays(*given) -> dict[str, np.ndarray]:
            found = genuine(*given)
            found[name] = found[name].copy()
            found[name].flat[3] += 2
            return found

        monkeypatch.setattr(torch_engine, "initializer_arrays", arrays)

    return change


def sides(bundle: Bundle, graph: str, *wanted: Side) -> list:
    sizes, _ = read_vectors(bundle.path(vector_path(graph)))
    return [look_inside(bundle, graph, side, sizes, 1) for side in wanted]


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_layer_has_its_tensor_and_computes_what_the_graph_does(
    bundle: Bundle, checkpoints: Checkpoints, graph: str
) -> None:
    ours, reference = sides(bundle, graph, TORCH, REFERENCE)
    modules = next(each for each in graphs(checkpoints) if each.name == graph).build(checkpoints).named_modules()
    layers = [name for name, module in modules if isinstance(module, LAYERS)]
    paired = {output.module for output in ours.probe.module_outputs.values()}
    print(f"{graph}: {len(paired)} of {len(layers)} layers, {len(ours.tensors)} of {len(ours.all)} tensors")
    assert sorted(set(layers) - paired) == NEVER_CALLED.get(graph, []) and paired <= set(layers)
    names = [tensor.name for tensor in ours.tensors]
    mine, theirs = ours.run(names), reference.run(names)
    assert mine.keys() == theirs.keys() == set(names)
    # Rounding piles up to 78 dB in a denoiser of random weights; another tensor of the same shape would have none.
    assert min(signal_to_error(theirs[name], mine[name]) for name in names) > 70


def test_halves_of_a_gated_projection_are_two_tensors(bundle: Bundle) -> None:
    (ours,) = sides(bundle, "denoiser_single", TORCH)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj"
    halves = [output for output in ours.probe.module_outputs.values() if output.module == name]
    assert sorted((half.piece, half.pieces) for half in halves) == [(0, 2), (1, 2)]


@pytest.mark.parametrize(
    ("graph", "module", "node", "chunk_bytes"),
    [
        ("kps_guider", "blocks.3", "Conv", 1),
        ("vae_decoder", "decoder.mid_block.attentions.0.to_k", "Add", 1),
        ("vae_decoder", "decoder.mid_block.attentions.0.to_k", "Add", 100_000),
        ("audio_projection", "layers.1.1.1", "MatMul", 1),
        ("reference", "net.mid_block.attentions.0.norm", "GroupNormalization", 1 << 20),
        ("denoiser_single", "mid_block.attentions.0.transformer_blocks.0.norm2", "LayerNormalization", 512 << 20),
    ],
)
def test_a_wrong_weight_is_located_in_its_module(
    bundle: Bundle, wrong_weight, graph: str, module: str, node: str, chunk_bytes: int
) -> None:
    wrong_weight(f"{module}.weight")
    for one, other in ((TORCH, REFERENCE), (REFERENCE, TORCH)):
        (result,) = bisect(bundle, one, other, graphs=[graph], threads=1, chunk_bytes=chunk_bytes)
        assert not result.agrees and result.node == f"{module}/{node}"
        assert result.tensor_snr_db < 60 and result.before_db > 75  # what rounding leaves in front of it
        assert 0 < result.tensors <= result.comparable < result.total


def test_what_is_wrong_between_layers_is_located_at_the_next_one(bundle: Bundle, tmp_path: Path) -> None:
    changed = copied(bundle, tmp_path)
    path = changed.path("onnx/fp32/kps_guider.onnx")
    model = onnx.load(path, load_external_data=False)
    gates = [node for node in model.graph.node if node.op_type == "Sigmoid"]
    gates[2].op_type = "HardSigmoid"
    path.write_bytes(model.SerializeToString())
    (result,) = bisect(changed, TORCH, REFERENCE, graphs=["kps_guider"], threads=1)
    assert result.node == "blocks.2/Conv" and result.tensor_snr_db < 60 < 100 < result.before_db


def test_a_module_that_a_graph_runs_twice_is_left_out(bundle: Bundle, tmp_path: Path) -> None:
    changed = copied(bundle, tmp_path)
    path = changed.path("onnx/fp32/kps_guider.onnx")
    model = onnx.load(path, load_external_data=False)
    again = model.graph.node.add()
    again.CopyFrom(next(node for node in model.graph.node if node.name == "blocks.1/Conv"))
    again.output[0] = "again"
    path.write_bytes(model.SerializeToString())
    before, after = (
        {output.module for output in sides(each, "kps_guider", TORCH)[0].probe.module_outputs.values()}
        for each in (bundle, changed)
    )
    assert before - after == {"blocks.1"} and after < before


def test_a_module_that_torch_calls_twice_is_left_out(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from vexpress_trt.export.nets.guider import KpsGuider

    forward = KpsGuider.forward

    def twice(self: KpsGuider, rgb: torch.Tensor) -> torch.Tensor:
        self.conv_in(rgb)
        return forward(self, rgb)

    monkeypatch.setattr(KpsGuider, "forward", twice)
    (ours,) = sides(bundle, "kps_guider", TORCH)
    names = [tensor.name for tensor in ours.tensors]
    (left_out,) = set(names) - ours.run(names).keys()
    assert ours.probe.module_outputs[left_out].module == "conv_in"


def test_a_module_whose_output_has_another_shape_is_left_out(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    from vexpress_trt.export.nets.library import VaeDecoder

    forward = VaeDecoder.forward

    def one_by_one(self: VaeDecoder, latents: torch.Tensor) -> torch.Tensor:
        return forward(self, latents[:1]).expand(len(latents), -1, -1, -1)

    monkeypatch.setattr(VaeDecoder, "forward", one_by_one)
    (ours,) = sides(bundle, "vae_decoder", TORCH)
    assert ours.sizes["N"] > 1
    assert ours.run([tensor.name for tensor in ours.tensors]).keys() == ours.own_outputs()


def test_only_what_is_asked_for_is_kept_and_hooks_are_gone_afterwards(bundle: Bundle, monkeypatch) -> None:
    hooked: list[nn.Module] = []
    register = nn.Module.register_forward_hook
    monkeypatch.setattr(
        nn.Module, "register_forward_hook", lambda self, hook: hooked.append(self) or register(self, hook)
    )
    (ours,) = sides(bundle, "kps_guider", TORCH)
    asked = [tensor.name for tensor in ours.tensors][2:4]
    assert ours.run(asked).keys() == {*asked, "feature"}
    assert len(hooked) == 2 and not any(module._forward_hooks for module in hooked)


def test_tensors_of_the_timestep_alone_are_compared_where_no_table_stands_for_them(bundle: Bundle) -> None:
    everywhere, tabulated, modules = sides(bundle, "denoiser_single", REFERENCE, Side("openvino", "fp32"), TORCH)
    of_timestep = {tensor.name for tensor in everywhere.all if tensor.inputs == {"timestep"}}
    assert of_timestep <= {tensor.name for tensor in everywhere.tensors}
    assert not of_timestep & {tensor.name for tensor in tabulated.tensors}
    paired = {output.module for name, output in modules.probe.module_outputs.items() if name in of_timestep}
    assert {"time_embedding.linear_1", "time_embedding.linear_2"} <= paired


def test_types_of_torch_are_compared_with_one_another(bundle: Bundle) -> None:
    half = Side("torch", "fp32", "bf16")
    (rough,) = bisect(bundle, half, TORCH, graphs=["kps_guider"], threads=1)
    assert rough.agrees and rough.threshold_db == 25
    (strict,) = bisect(bundle, half, TORCH, graphs=["kps_guider"], threads=1, threshold=90.0)
    assert strict.node == "conv_in/Conv" and strict.before_db == 300


def test_the_command_counts_what_it_looked_at(bundle: Bundle, wrong_weight, capsys) -> None:
    wrong_weight("blocks.3.weight")
    command = f"verify {bundle.root} --backend torch --bisect onnxruntime --graph kps_guider".split()
    assert cli.main(command) == 1
    out, err = capsys.readouterr()
    assert "torch/fp32 against onnxruntime/fp32" in out and "of blocks.3/Conv (Conv): " in out
    assert "looked at 8 tensors, of 8 that both sides give and 22 in the graph" in out
    assert err.splitlines() == ["kps_guider: its outputs", "kps_guider: 8 of 8 tensors inside"]


def copied(bundle: Bundle, folder: Path) -> Bundle:
    """A copy with files of its own."""
    return Bundle.open(shutil.copytree(bundle.root, folder / "copied.bundle"))
