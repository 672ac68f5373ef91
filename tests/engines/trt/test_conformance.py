"""Every name of TensorRT's API that our code uses exists in the bindings of full TensorRT, which nothing here runs."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import fake_tensorrt
import pytest
from tensorrt_names import SOURCES, c_compiler, check_folder, missing, names_in, used_names

from vexpress_trt.engines.trt.flavour import SMALLEST, TENSORRT, TensorRt

# Targets, which `check_options` refuses for full TensorRT, and the cache of what TensorRT-RTX compiles when it loads.
RTX_ONLY = [
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "DynamicShapesKernelSpecializationStrategy.EAGER",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IExecutionContext.is_stream_capturable",
    "IRuntimeCache.deserialize",
    "IRuntimeCache.serialize",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_runtime_cache",
]
# Looked for, not relied on: TensorRT 10.12 and 10.13 lack them (test_older_parsers.py builds without them).
ATTENTION = [
    "IAttention.decomposable",
    "IAttentionInputLayer",
    "IAttentionInputLayer.attention",
    "LayerType.ATTENTION_INPUT",
]
PLAYED = (
    "ILogger Runtime ICudaEngine IExecutionContext IRuntimeConfig IRuntimeCache TensorIOMode DataType "
    "ExecutionContextAllocationStrategy DynamicShapesKernelSpecializationStrategy Builder OnnxParser "
    "INetworkDefinition ILayer ITensor IBuilderConfig IOptimizationProfile ITimingCache IProgressMonitor LayerType "
    "MemoryPoolType ComputeCapability NetworkDefinitionCreationFlag"
).split()
# What the stand-in counts for the tests, and what they have it do.
OWN = ("deserialised", "runs", "built", "miscompiled", "only_fused")
TABLE = Path(__file__).with_name("api_names.json")


def test_tensorrt_as_installed_has_every_name() -> None:
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None:
        pytest.skip("tensorrt_cu13_bindings is not installed (it is part of the test extra on x86-64 Linux)")
    if c_compiler() is None:
        pytest.skip("there is no C compiler for the empty libraries that the bindings are imported on")
    assert check_folder(Path(spec.origin).parents[1])["missing"] == RTX_ONLY


def test_tensorrt_rtx_has_every_name(rtx: TensorRt) -> None:
    assert missing(rtx.module, used_names()) == []


def test_what_is_played_has_real_names_only_and_every_one_that_runs_and_looks_inside_use(rtx: TensorRt) -> None:
    kinds = {name: kind for name, kind in vars(fake_tensorrt).items() if name in PLAYED}
    played = {
        f"{kind}.{name}"
        for kind, definition in kinds.items()
        for name in (*vars(definition), *definition.__annotations__, *getattr(definition, "__members__", ()))
        if not name.startswith("_") and name not in OWN
    }
    assert missing(rtx.module, played) == []
    assert kinds.keys() == set(PLAYED)
    sources = [SOURCES / name for name in ("loaded_plan.py", "bindings.py", "timing_cache.py", "probe.py")]
    used = set().union(*(names_in(source.read_text()) for source in sources))
    assert used - played <= kinds.keys()


def test_the_table_is_of_the_names_used_now() -> None:
    """Written anew by `python tests/tensorrt_names.py WHEEL ...`."""
    assert json.loads(TABLE.read_text())["names"] == used_names()


def test_every_version_accepted_has_every_name_but_those_of_attention_before_10_14() -> None:
    verified = {package.split()[1]: lacking for package, lacking in json.loads(TABLE.read_text())["missing"].items()}
    for version, lacking in verified.items():
        has_attention = TensorRt(TENSORRT, SimpleNamespace(), version).has_attention
        assert lacking == (RTX_ONLY if has_attention else sorted([*RTX_ONLY, *ATTENTION])), version
    oldest = min(tuple(map(int, version.split(".")[:2])) for version in verified)
    assert oldest == SMALLEST


def test_a_name_that_no_version_has_is_found_out(rtx: TensorRt) -> None:
    names = names_in("def build(trt):\n    builder = trt.Builder(1)\n    return builder.no_such(trt.NoSuchClass)\n")
    assert names == {"Builder", "Builder.no_such", "NoSuchClass"}
    assert missing(rtx.module, sorted(names)) == ["Builder.no_such", "NoSuchClass"]


def test_an_object_in_a_variable_of_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="give thing a role"):
        names_in("def build(trt, builder):\n    thing = builder.create_network(0)\n")
