"""The Triton kernels give what the plain forms of the operations define.

Without a GPU Triton's interpreter runs them on the CPU. It cuts bfloat16 off where a GPU rounds, and multiplies
matrices of bfloat16 by their bit patterns: the temporal attention is tried in that dtype on a GPU only.

On a GPU every kind of call is compiled first, a fifth of a second each: cases take dtypes in turns, not all of them.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")
pytest.importorskip("triton", reason="needs Triton, which there is for Linux")

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from vexpress_trt.export.nets.fused import kernels, operations  # noqa: E402

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Relative and absolute: a unit in the last place of the dtype, and of float32 sums of a few hundred terms around 10. A
# GPU's division may be off by two units: 2e-6 of a mean of 10, times weights of up to 4.
TOLERANCES = {torch.float32: (1e-5, 2e-5), torch.float16: (2**-10, 1e-5), torch.bfloat16: (2**-7, 1e-5)}

Run = Callable[..., Any]


def in_turns(*cases: tuple) -> list[tuple]:
    """Every case with a dtype behind."""
    return [(*case, DTYPES[number % len(DTYPES)]) for number, case in enumerate(cases)]


@pytest.fixture(scope="module", params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Calls a function of `kernels` with tensors of the CPU."""
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("needs an NVIDIA GPU and a torch built for it")
        yield _on_gpu
        return
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        # How a kernel runs is decided when it is defined: in a process of its own, which starts with the first call.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result()
        yield lambda operation, *args, **named: pool.submit(operation, *args, **named).result()


def _on_gpu(operation: Callable, *args: Any, **named: Any) -> Any:
    moved: dict[int, Tensor] = {}  # a tensor that is given twice stays one

    def there(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(there, value))
        return moved.setdefault(id(value), value.cuda()) if isinstance(value, Tensor) else value

    result = operation(*map(there, args), **{name: there(value) for name, value in named.items()})
    return tuple(part.cpu() for part in result) if isinstance(result, tuple) else result.cpu()


def noise(*shape: int, dtype: torch.dtype, mean: float = 0.0, seed: int = 0) -> Tensor:
    random = np.random.default_rng([seed, *shape])
    return torch.from_numpy(random.normal(mean, 1.0, shape).astype(np.float32)).to(dtype)


def assert_same(result: Tensor, expected: Tensor) -> None:
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    relative, absolute = TOLERANCES[result.dtype]
    torch.testing.assert_close(result.double(), expected.double(), rtol=relative, atol=absolute)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_added(run: Run, dtype: torch.dtype, shifted: bool) -> None:
    rows, added = noise(3, 47, 72, dtype=dtype), noise(3, 47, 72, dtype=dtype, seed=1)
    shift = noise(72, dtype=dtype) if shifted else None
    assert_same(run(kernels.add_rows, rows, added, shift), operations.add_rows(rows, added, shift))


@pytest.mark.parametrize(("number", "dtype"), in_turns(*((number,) for number in range(10))))
def test_group_norm(run: Run, dtype: torch.dtype, number: int) -> None:
    random = np.random.default_rng(number)
    images, pixels, groups = random.integers((1, 2, 1), (4, 301, 6)).tolist()
    size, mean = (1, 6, 10, 16, 20)[number % 5], (0.0, 10.0)[number // 5]
    shifted, silu = number % 2 == 0, number % 4 < 2
    channels = groups * size
    rows = noise(images, pixels, channels, dtype=dtype, mean=mean)
    given = groups, noise(channels, dtype=dtype), noise(channels, dtype=dtype, seed=1), 1e-5
    named = {"shift": noise(images, channels, dtype=dtype, seed=2) if shifted else None, "silu": silu}
    assert_same(run(kernels.group_norm, rows, *given, **named), operations.group_norm(rows, *given, **named))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_group_norm_of_a_sum(run: Run, dtype: torch.dtype, shifted: bool) -> None:
    rows, added = noise(2, 150, 80, dtype=dtype, mean=3), noise(2, 150, 80, dtype=dtype, seed=1)
    shift = noise(80, dtype=dtype) if shifted else None
    given = 8, noise(80, dtype=dtype), noise(80, dtype=dtype, seed=1), 1e-6
    total, normed = run(kernels.add_group_norm, rows, added, *given, shift=shift, silu=True)
    assert_same(total, operations.add_rows(rows, added, shift))
    assert_same(normed, operations.group_norm(total, *given, silu=True))


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize(("own", "others", "dtype"), in_turns((64, 64), (64, 128), (40, 56), (1, 7)))
def test_group_norm_of_a_sum_and_what_is_beside_it(
    run: Run, dtype: torch.dtype, own: int, others: int, summed: bool
) -> None:
    rows, beside = noise(2, 70, own, dtype=dtype, mean=3), noise(2, 70, others, dtype=dtype, seed=1)
    added = noise(2, 70, own, dtype=dtype, seed=2) if summed else None
    shift = noise(own, dtype=dtype) if summed else None
    given = 8, noise(own + others, dtype=dtype), noise(own + others, dtype=dtype, seed=1), 1e-6
    total, normed = run(kernels.add_group_norm, rows, added, *given, shift=shift, beside=beside, silu=True)
    first = operations.add_rows(rows, added, shift) if summed else rows
    assert_same(total, torch.cat([first, beside], dim=-1))
    assert_same(normed, operations.group_norm(total, *given, silu=True))


def test_group_norm_of_more_tiles_than_one_step_takes(run: Run) -> None:
    rows = noise(2, 17 * kernels.PART_ROWS + 5, 80, dtype=torch.float32, mean=1)
    given = 1, noise(80, dtype=torch.float32), noise(80, dtype=torch.float32, seed=1), 1e-5
    assert_same(run(kernels.group_norm, rows, *given, silu=False), operations.group_norm(rows, *given, silu=False))


def test_statistics_survive_a_mean_that_is_large_against_the_deviation(run: Run) -> None:
    """The mean of squares less the square of the mean would be off by more than the variance itself.

    The mean may be off by a few units in its last place, 2**-11: GPUs divide to two of them."""
    rows = noise(1, 300, 20, dtype=torch.float32, mean=5000)
    ones, zeros = torch.ones(20), torch.zeros(20)
    exact = rows.double().unflatten(-1, (2, 10))
    exact = (exact - exact.mean((1, 3), keepdim=True)) / exact.var((1, 3), correction=0, keepdim=True).sqrt()
    normed = run(kernels.group_norm, rows, 2, ones, zeros, 0.0, silu=False)
    torch.testing.assert_close(normed.double(), exact.flatten(2), rtol=0, atol=2e-3)
    exact = rows.double()
    exact = (exact - exact.mean(2, keepdim=True)) / exact.var(2, correction=0, keepdim=True).sqrt()
    torch.testing.assert_close(run(kernels.layer_norm, rows, ones, zeros, 0.0).double(), exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize(("channels", "dtype"), in_turns((8,), (320,), (320,), (1100,)))
def test_layer_norm(run: Run, dtype: torch.dtype, channels: int, placed: bool) -> None:
    rows = noise(6, 5, channels, dtype=dtype, mean=2)
    given = noise(channels, dtype=dtype), noise(channels, dtype=dtype, seed=1), 1e-5
    positions = noise(3, channels, dtype=dtype, seed=2) if placed else None
    expected = operations.layer_norm(rows, *given, positions=positions)
    assert_same(run(kernels.layer_norm, rows, *given, positions=positions), expected)


@pytest.mark.parametrize(
    ("added", "shifted", "scaled", "dtype"),
    in_turns(
        *[(True, True, True), (True, False, True), (True, True, False), (True, False, False), (False, True, False)],
        *[(False, False, False), (True, True, True), (True, True, False)],
    ),
)
def test_layer_norm_of_a_sum(run: Run, dtype: torch.dtype, added: bool, shifted: bool, scaled: bool) -> None:
    rows, more = noise(4, 9, 40, dtype=dtype, mean=2), noise(4, 9, 40, dtype=dtype, seed=1) if added else None
    given = noise(40, dtype=dtype), noise(40, dtype=dtype, seed=1), 1e-5
    summed = {
        "scale": noise(1, dtype=dtype) if scaled else None,
        "shift": noise(40, dtype=dtype, seed=2) if shifted else None,
    }
    positions = noise(2, 40, dtype=dtype)
    total, normed = run(kernels.add_layer_norm, rows, more, *given, **summed, positions=positions)
    assert_same(total, operations.add_layer_norm(rows, more, *given, **summed)[0])
    assert_same(normed, operations.layer_norm(total, *given, positions=positions))


def test_a_sum_and_its_layer_norm_go_where_they_are_told(run: Run) -> None:
    rows, added = noise(2, 9, 40, dtype=torch.float32), noise(2, 9, 40, dtype=torch.float32, seed=1)
    given = noise(40, dtype=torch.float32), noise(40, dtype=torch.float32, seed=1), 1e-5
    expected = operations.add_layer_norm(rows, added, *given)
    out = rows, torch.zeros_like(rows)
    for result, part in zip(run(kernels.add_layer_norm, rows, added, *given, out=out), expected, strict=True):
        assert_same(result, part)
    with pytest.raises(ValueError, match="add_layer_norm: out is not contiguous"):
        kernels.add_layer_norm(rows, added, *given, out=(rows, torch.zeros(2, 40, 9).transpose(1, 2)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_gelu(run: Run, dtype: torch.dtype) -> None:
    projected = 3 * noise(2, 37, 144, dtype=dtype)
    assert_same(run(kernels.gated_gelu, projected), operations.gated_gelu(projected))


@pytest.mark.parametrize(
    ("windows", "frames", "pixels", "heads", "head_channels", "dtype"),
    [
        *((2, 24, 3, 2, 40, dtype) for dtype in DTYPES),
        *in_turns((1, 12, 2, 1, 80), (1, 32, 1, 2, 160), (1, 2, 1, 1, 256)),
        *in_turns((1, 32, 1, 2, 160), (3, 1, 2, 1, 8), (1, 17, 1, 3, 16)),
        *in_turns((1, 2, 1, 1, 256), (1, 17, 1, 3, 16)),
    ],
)
def test_temporal_attention(
    run: Run, dtype: torch.dtype, windows: int, frames: int, pixels: int, heads: int, head_channels: int
) -> None:
    if dtype == torch.bfloat16 and run is not _on_gpu:
        pytest.skip("Triton's interpreter multiplies bit patterns of bfloat16")
    projected = 2 * noise(windows * frames, pixels, 3 * heads * head_channels, dtype=dtype)
    result = run(kernels.temporal_attention, projected, heads, frames)
    exact = operations.temporal_attention(projected.double(), heads, frames).to(dtype)
    # The weights are rounded to the dtype, too: relative to the largest value that they mix.
    tolerance = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(result, exact, rtol=0, atol=tolerance * float(projected.abs().max()))


def test_temporal_attention_leaves_long_windows_and_wide_heads_to_the_plain_form() -> None:
    assert kernels.temporal_attention(torch.zeros(33, 1, 48), 1, 33) is NotImplemented
    assert kernels.temporal_attention(torch.zeros(2, 1, 3 * 257), 1, 2) is NotImplemented


def test_rows_that_are_not_contiguous_are_read_as_they_are_meant(run: Run) -> None:
    rows = noise(2, 24, 30, dtype=torch.float32).transpose(1, 2)
    given = noise(48, dtype=torch.float32)[::2], noise(24, dtype=torch.float32), 1e-5
    assert_same(run(kernels.layer_norm, rows, *given), operations.layer_norm(rows, *given))
    shift = noise(1, 24, dtype=torch.float32).expand(2, -1)
    result = run(kernels.group_norm, rows, 4, *given, shift=shift, silu=False)
    assert_same(result, operations.group_norm(rows, 4, *given, shift=shift, silu=False))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU and a torch built for it")
def test_a_cuda_graph_of_the_kernels_gives_what_they_give() -> None:
    rows, projected = (noise(48, 70, size, dtype=torch.float16).cuda() for size in (320, 960))
    row = rows[0, 0]
    joined = torch.cat([row, row])

    def everything() -> list[Tensor]:
        return [
            kernels.add_rows(rows, rows, row),
            kernels.group_norm(rows, 32, row, row, 1e-5, silu=True),
            *kernels.add_group_norm(rows, rows, 32, row, row, 1e-5, silu=True),
            *kernels.add_group_norm(rows, None, 32, joined, joined, 1e-5, beside=rows, silu=True),
            *kernels.add_layer_norm(rows, rows, row, row, 1e-5),
            kernels.gated_gelu(projected),
            kernels.temporal_attention(projected, 8, 24),
        ]

    expected = everything()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = everything()
    for result in captured:
        result.fill_(float("nan"))
    graph.replay()
    for result, part in zip(captured, expected, strict=True):
        assert torch.equal(result, part)
