"""A backend with the number of a GPU."""

import pytest

from vexpress_trt.engines.backend_name import on_gpu, split_backend
from vexpress_trt.engines.errors import UserError


@pytest.mark.parametrize(
    ("name", "parts"),
    [("openvino", ("openvino", None)), ("torch-cuda:0", ("torch-cuda", 0)), ("tensorrt-rtx:12", ("tensorrt-rtx", 12))],
)
def test_a_name_has_a_kind_and_perhaps_the_number_of_a_gpu(name: str, parts: tuple[str, int | None]) -> None:
    assert split_backend(name) == parts


@pytest.mark.parametrize("name", ["torch-cuda:", "torch-cuda:x", "torch-cuda:-1", "torch-cuda:0:1"])
def test_what_is_no_number_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"^there is no backend '{name}': "):
        split_backend(name)


@pytest.mark.parametrize(("gpu", "name"), [(0, "torch-cuda"), (3, "torch-cuda:3")])
def test_the_first_gpu_needs_no_number(gpu: int, name: str) -> None:
    assert on_gpu("torch-cuda", gpu) == name
    assert split_backend(name)[0] == "torch-cuda"
