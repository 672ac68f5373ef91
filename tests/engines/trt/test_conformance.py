"""Every name of TensorRT's API that our code uses exists in the bindings of full TensorRT, which nothing here runs."""

import importlib.util
import json
from pathlib import Path

import pytest
from tensorrt_names import c_compiler, check_folder, missing, names_in, used_names

from vexpress_trt.engines.trt.flavour import SMALLEST, TensorRt

# Used for targets only, which `check_options` refuses for full TensorRT.
RTX_ONLY = ["ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"]
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


def test_the_table_is_of_the_names_used_now() -> None:
    """Written anew by `python tests/tensorrt_names.py WHEEL ...`."""
    assert json.loads(TABLE.read_text())["names"] == used_names()


def test_the_oldest_version_accepted_is_the_first_with_every_name() -> None:
    for package, lacking in json.loads(TABLE.read_text())["missing"].items():
        version = tuple(map(int, package.split()[1].split(".")[:2]))
        assert (lacking == RTX_ONLY) == (version >= SMALLEST), package


def test_a_name_that_no_version_has_is_found_out(rtx: TensorRt) -> None:
    names = names_in("def build(trt):\n    builder = trt.Builder(1)\n    return builder.no_such(trt.NoSuchClass)\n")
    assert names == {"Builder", "Builder.no_such", "NoSuchClass"}
    assert missing(rtx.module, sorted(names)) == ["Builder.no_such", "NoSuchClass"]


def test_an_object_in_a_variable_of_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="give thing a role"):
        names_in("def build(trt, builder):\n    thing = builder.create_network(0)\n")
