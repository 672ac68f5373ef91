"""What is known of a build before it begins: operators that cannot be read, working memory that will not suffice."""

from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from vexpress_trt import cli
from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import GraphSpec, TensorSpec
from vexpress_trt.engines.trt.builder import Build, BuildOptions
from vexpress_trt.engines.trt.flavour import TensorRt
from vexpress_trt.engines.trt.foresight import Need, least_working_memory
from vexpress_trt.engines.trt.preflight import DEFAULT_WORKSPACE, check_working_memory, workspace_for
from vexpress_trt.engines.trt.profile import Profile
from vexpress_trt.engines.trt.size_flags import Range

FIXED, FP16 = Profile("fixed", {}), TensorProto.FLOAT16


def written(
    folder: Path, nodes: list, shape: tuple, element: int = FP16, inputs: tuple[str, ...] = ("x",), weights: tuple = ()
) -> tuple[GraphSpec, Path]:
    """A graph of these nodes from inputs to y, all of one shape: its specification and its file."""
    values = {name: helper.make_tensor_value_info(name, element, shape) for name in (*inputs, "y")}
    graph = helper.make_graph(nodes, "g", [values[name] for name in inputs], [values["y"]], weights)
    path = folder / "g.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    specs = [TensorSpec(name, "float16" if element == FP16 else "float32", shape) for name in values]
    return GraphSpec("reference", "fp16", "g.onnx", tuple(specs[:-1]), tuple(specs[-1:]), ("g.onnx",)), path


def test_an_operator_that_tensorrt_lacks_is_named_with_its_node_and_graph(rtx: TensorRt, tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["z"]), helper.make_node("Det", ["z"], ["y"], name="det_7")]
    spec, path = written(tmp_path, nodes, (1, 4, 8, 8))
    said = "cannot read reference, .*g.onnx: operator Det of node det_7: it is not supported; install a newer version"
    with pytest.raises(UserError, match=said):
        least_working_memory(rtx, spec, path, FIXED)


@pytest.mark.parametrize(
    ("width", "element", "copies"),
    [
        (40, FP16, 0),
        (16, FP16, 0),
        (8, FP16, 2),
        (4, FP16, 1),
        (40, TensorProto.FLOAT, 2),
    ],
)
def test_scores_are_counted_where_no_kernel_is_fused_and_the_builder_needs_them(
    rtx: TensorRt, tmp_path: Path, width: int, element: int, copies: int
) -> None:
    inputs = ("query", "key", "value")
    nodes = [helper.make_node("Attention", inputs, ["y"])]
    spec, path = written(tmp_path, nodes, (2, 4, 1024, width), element, inputs)
    scores = 2 * 4 * 1024 * 1024 * (2 if element == FP16 else 4)
    need = least_working_memory(rtx, spec, path, FIXED)
    assert need.size == copies * scores
    if copies:
        with pytest.raises(UserError, match="needs more than --workspace"):
            Build(rtx).run(path, spec, FIXED, BuildOptions(("sm89",), workspace=need.size * 9 // 10))
    enough = (2 if copies else 0) * scores + scores // 4 + (4 << 20)
    assert Build(rtx).run(path, spec, FIXED, BuildOptions(("sm89",), workspace=enough)).data is not None


def test_sizes_are_the_largest_of_a_range(rtx: TensorRt, tmp_path: Path) -> None:
    weights = [
        helper.make_tensor(f"w{n}", FP16, shape, [0] * 128) for n, shape in enumerate(((32, 4, 1, 1), (4, 32, 1, 1)))
    ]
    nodes = [helper.make_node("Conv", ["x", "w0"], ["z"]), helper.make_node("Conv", ["z", "w1"], ["y"])]
    spec, path = written(tmp_path, nodes, (1, 4, "h", 8), weights=tuple(weights))
    need = least_working_memory(rtx, spec, path, Profile("h8-8-16", {"h": Range(8, 8, 16)}))
    assert need == Need(32 * 16 * 8 * 2, "the result of a convolution")


def test_too_small_a_workspace_is_refused_with_the_figures_before_anything_is_built(
    rtx: TensorRt, typed_bundle: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["build", str(typed_bundle), "--target", "sm86", "--precision", "fp16", "--workspace", "0.0625"]
    assert cli.main([*command, "--image_width", "2048", "--image_height", "2048"]) == 2
    said = capsys.readouterr().err
    assert "GiB of working memory for" in said and "--workspace allows 0.0625 GiB: raise it" in said
    assert not list((typed_bundle / "engines").glob("*sm86*"))


@pytest.mark.parametrize(("largest", "status"), [(256, 0), (2048, 2)])
def test_a_range_is_refused_where_its_largest_sizes_need_too_much(
    rtx: TensorRt, fresh_bundle: Path, largest: int, status: int, capsys: pytest.CaptureFixture
) -> None:
    sizes = f"--profile dynamic --image_width 64-64-{largest} --image_height 64-64-{largest} --workspace 0.0625"
    command = ["build", str(fresh_bundle), "--target", "sm86", "--precision", "fp16", "--graphs", "kps_guider"]
    assert cli.main([*command, *sizes.split()]) == status
    said = capsys.readouterr().err
    assert ("kps_guider needs at least" in said) == bool(status)


def test_speech_that_needs_too_much_can_be_heard_in_less(
    rtx: TensorRt, fresh_bundle: Path, capsys: pytest.CaptureFixture
) -> None:
    command = f"build {fresh_bundle} --target sm86 --precision fp16 --graphs audio_encoder --workspace 0.0625".split()
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert said.endswith("or build for less speech at once (--audio_seconds)\n") and "image" not in said
    assert cli.main([*command, "--audio_seconds", "2"]) == 0


def test_a_gpu_that_is_too_small_is_named_with_what_helps() -> None:
    need, symbols = Need(3 << 30, "an attention", "use --precision fp16"), {"B", "F", "h", "w"}
    check_working_memory("denoiser_guided", symbols, need, 2 << 30, 8 << 30, None)
    with pytest.raises(UserError, match="and 2.0 GiB for its weights, the GPU has 4.0 GiB free: close other programs"):
        check_working_memory("denoiser_guided", symbols, need, 2 << 30, 4 << 30, 4 << 30)
    with pytest.raises(UserError, match=r"--workspace allows 2 GiB: .*, or use --precision fp16, or build for"):
        check_working_memory("denoiser_guided", symbols, need, 0, 2 << 30, None)


@pytest.mark.parametrize(
    ("symbols", "helps"),
    [
        ("BFhw", ", or build for a smaller image or fewer --context_frames or a smaller --window_batch"),
        ("Nhw", ", or build for a smaller image"),
        ("S", r", or build for less speech at once \(--audio_seconds\)"),
        ("N", ""),
    ],
)
def test_only_sizes_that_a_graph_has_are_called_too_large(symbols: str, helps: str) -> None:
    with pytest.raises(UserError, match=f"raise it to what the GPU can spare{helps}$"):
        check_working_memory("g", symbols, Need(3 << 30, "a step"), 0, 2 << 30, None)


def test_the_workspace_is_no_more_than_the_gpu_has_free() -> None:
    assert workspace_for(None, None) == workspace_for(None, 80 << 30) == DEFAULT_WORKSPACE
    assert workspace_for(None, 3 << 30) == 3 << 30
    assert workspace_for(40 << 30, None) == 40 << 30
    with pytest.raises(UserError, match="--workspace 4: the GPU has 3.0 GiB free: ask for less, or close other"):
        workspace_for(4 << 30, 3 << 30)
