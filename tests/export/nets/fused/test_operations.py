"""The plain forms of the fused operations are what their words say, and tensors of a GPU go through the kernels."""

import re
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from vexpress_trt.export.nets import fused  # noqa: E402
from vexpress_trt.export.nets.fused import operations  # noqa: E402


@pytest.fixture
def random() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(3)
    return lambda *shape, dtype=torch.float32: torch.randn(shape, generator=generator).to(dtype)


def test_the_sum_of_rows_is_rounded_once(random: Callable) -> None:
    rows, added, shift = (random(*shape, dtype=torch.float16) for shape in ((2, 9, 8), (2, 9, 8), (8,)))
    exact = rows.double() + added.double() + shift.double()
    assert torch.equal(operations.add_rows(rows, added, shift), exact.half())
    assert not torch.equal(rows + added + shift, exact.half())


def test_group_norm_is_that_of_images(random: Callable) -> None:
    rows, weight, bias, shift = random(2, 12, 8), random(8), random(8), random(2, 8)
    images = rows.transpose(1, 2).unflatten(2, (3, 4))  # [N, C, h, w]
    expected = F.silu(F.group_norm(images + shift[:, :, None, None], 4, weight, bias, 1e-5)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(operations.group_norm(rows, 4, weight, bias, 1e-5, shift=shift, silu=True), expected)
    without = F.group_norm(images, 4, weight, bias, 1e-5).flatten(2).transpose(1, 2)
    torch.testing.assert_close(operations.group_norm(rows, 4, weight, bias, 1e-5, silu=False), without)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_of_16_bit_rows_are_taken_in_float32(random: Callable, dtype: torch.dtype) -> None:
    """Squares of these numbers are beyond float16, their sum beyond the digits of bfloat16."""
    rows = (300 * random(1, 500, 8)).to(dtype)
    ones, zeros = torch.ones(8, dtype=dtype), torch.zeros(8, dtype=dtype)
    exact = rows.double().numpy()
    per_group = exact.reshape(500, 2, 4)
    grouped = (per_group - per_group.mean((0, 2), keepdims=True)) / per_group.std((0, 2), keepdims=True)
    per_row = (exact - exact.mean(2, keepdims=True)) / exact.std(2, keepdims=True)
    for result, expected in (
        (operations.group_norm(rows, 2, ones, zeros, 1e-5, silu=False), grouped.reshape(exact.shape)),
        (operations.layer_norm(rows, ones, zeros, 1e-5), per_row),
    ):
        np.testing.assert_allclose(result.double().numpy(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_group_norm_of_a_sum_is_that_of_the_rounded_sum(random: Callable) -> None:
    rows, added, weight, bias, shift = (random(*size, dtype=torch.float16) for size in [(2, 12, 8)] * 2 + [(8,)] * 3)
    total, normed = operations.add_group_norm(rows, added, 4, weight, bias, 1e-5, shift=shift, silu=True)
    assert torch.equal(total, operations.add_rows(rows, added, shift))
    assert torch.equal(normed, operations.group_norm(total, 4, weight, bias, 1e-5, silu=True))


def test_group_norm_of_a_sum_takes_in_what_is_beside_it(random: Callable) -> None:
    rows, added, beside, weight, bias = (random(*size) for size in [(2, 12, 8)] * 2 + [(2, 12, 4)] + [(12,)] * 2)
    for other, summed in ((added, rows + added), (None, rows)):
        total, normed = operations.add_group_norm(rows, other, 4, weight, bias, 1e-5, beside=beside, silu=False)
        assert torch.equal(total, torch.cat([summed, beside], dim=-1))
        assert torch.equal(normed, operations.group_norm(total, 4, weight, bias, 1e-5, silu=False))


def test_positions_follow_the_number_of_the_image(random: Callable) -> None:
    rows, weight, bias, positions = random(6, 5, 8), random(8), random(8), random(3, 8)
    normed = operations.layer_norm(rows, weight, bias, 1e-5, positions=positions)
    for image in range(6):
        expected = F.layer_norm(rows[image], (8,), weight, bias, 1e-5) + positions[image % 3]
        torch.testing.assert_close(normed[image], expected)


def test_layer_norm_of_a_sum(random: Callable) -> None:
    rows, added, weight, bias, shift, scale = *(random(2, 5, 8) for _ in range(2)), *(random(8) for _ in range(3)), 0.3
    total, normed = operations.add_layer_norm(
        rows, added, weight, bias, 1e-5, scale=torch.tensor([scale]), shift=shift, positions=weight[None]
    )
    torch.testing.assert_close(total, rows + scale * added + shift)
    torch.testing.assert_close(normed, operations.layer_norm(total, weight, bias, 1e-5, positions=weight[None]))
    assert torch.equal(operations.add_layer_norm(rows, None, weight, bias, 1e-5)[0], rows)


def test_layer_norm_of_a_sum_goes_where_it_is_told(random: Callable) -> None:
    rows, added, weight, bias = random(2, 5, 8), random(2, 5, 8), random(8), random(8)
    expected = operations.add_layer_norm(rows, added, weight, bias, 1e-5)
    out = rows, torch.empty_like(rows)
    results = operations.add_layer_norm(rows, added, weight, bias, 1e-5, out=out)
    for result, place, value in zip(results, out, expected, strict=True):
        assert result is place
        assert torch.equal(result, value)


def test_gated_gelu_is_the_exact_one(random: Callable) -> None:
    from scipy.special import erf

    projected = 3 * random(2, 5, 16)
    value, gate = np.split(projected.double().numpy(), 2, axis=-1)
    expected = value * gate * 0.5 * (1 + erf(gate / np.sqrt(2)))
    np.testing.assert_allclose(operations.gated_gelu(projected).numpy(), expected, rtol=2e-6, atol=1e-6)


def test_temporal_attention_mixes_the_frames_of_one_window_pixel_and_head(random: Callable) -> None:
    windows, frames, pixels, heads, size = 2, 5, 3, 2, 4
    projected = random(windows * frames, pixels, 3 * heads * size)
    result = operations.temporal_attention(projected, heads, frames)
    parts = projected.double().numpy().reshape(windows, frames, pixels, 3, heads, size)
    expected = np.empty((windows, frames, pixels, heads, size))
    for place in np.ndindex(windows, pixels, heads):
        window, pixel, head = place
        query, key, value = (parts[window, :, pixel, part, head] for part in range(3))
        weights = np.exp(query @ key.T / np.sqrt(size))
        expected[window, :, pixel, head] = weights @ value / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(result.numpy(), expected.reshape(result.shape), rtol=1e-5, atol=1e-6)
    assert result.is_contiguous()


def test_the_cpu_takes_plain_forms_and_says_so() -> None:
    assert operations.why_plain(torch.device("cpu")) == "the kernels need a GPU, this is cpu"


def test_a_gpu_that_cannot_have_the_kernels_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = operations._obstacle.__wrapped__
    monkeypatch.setitem(sys.modules, "vexpress_trt.export.nets.fused.kernels", None)
    monkeypatch.delattr(fused, "kernels", raising=False)
    assert re.match(r"Triton is not installed \(.*\): pip install triton", reason(torch.device("cpu")))

    def fails(*given: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(fused, "kernels", SimpleNamespace(add_rows=fails), raising=False)
    expected = "Triton cannot compile kernels here (it needs gcc and Python's headers): Failed to find C compiler"
    assert reason(torch.device("cpu")) == expected


OPERATIONS = "add_rows group_norm add_group_norm layer_norm add_layer_norm gated_gelu temporal_attention".split()


@pytest.mark.parametrize("name", OPERATIONS)
def test_where_nothing_speaks_against_it_the_kernel_of_the_same_name_runs(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    calls = []

    def kernel(*given: object, **named: object) -> str:
        calls.append((given, named))
        return "from the kernel"

    monkeypatch.setattr(operations, "why_plain", lambda device: None)
    monkeypatch.setattr(fused, "kernels", SimpleNamespace(**{name: kernel}), raising=False)
    rows = torch.zeros(1, 2, 8)
    assert getattr(operations, name)(rows, 1, extra=2) == "from the kernel"
    assert calls == [((rows, 1), {"extra": 2})]


def test_what_a_kernel_does_not_serve_takes_the_plain_form(monkeypatch: pytest.MonkeyPatch, random: Callable) -> None:
    projected = random(2, 3, 12)
    expected = operations.temporal_attention(projected, 1, 2)
    refusing = SimpleNamespace(temporal_attention=lambda *given: NotImplemented)
    monkeypatch.setattr(operations, "why_plain", lambda device: None)
    monkeypatch.setattr(fused, "kernels", refusing, raising=False)
    assert torch.equal(operations.temporal_attention(projected, 1, 2), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a torch built for it")
def test_a_gpu_takes_the_kernels() -> None:
    assert operations.why_plain(torch.zeros(1).cuda().device) is None
