"""Counter-based noise by default, torch's sequence without torch for comparison with the original."""

from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.runtime.noise import frame_noise, philox, torch_normal, upstream_noise

SHAPE = (4, 16, 16)
ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([ONES] * 4, (ONES, ONES), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter: list[int], key: tuple[int, int], expected: list[int]) -> None:
    assert philox(np.array([counter], np.uint32), key)[0].tolist() == expected


def test_frame_noise_is_standard_normal() -> None:
    noise = np.stack([frame_noise(42, frame, (4, 64, 64)) for frame in range(20)]).astype(np.float64)
    assert noise.shape == (20, 4, 64, 64)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.var() - 1) < 0.01
    assert abs((noise**3).mean()) < 0.03
    assert abs((noise**4).mean() - 3) < 0.06
    assert abs((noise[1:] * noise[:-1]).mean()) < 0.01
    assert abs((noise[..., 1:] * noise[..., :-1]).mean()) < 0.01


def test_frame_noise_follows_the_documented_recipe() -> None:
    seed, frame = (7 << 32) + 5, 3
    words = philox(np.array([[block, frame, 0, 0] for block in range(2)], np.uint32), (5, 7)).reshape(-1, 2)
    expected = []
    for x, y in words.tolist():
        radius = np.sqrt(-2 * np.log(((x >> 8) + 1) / 2**24))
        angle = 2 * np.pi * (y >> 8) / 2**24
        expected += [radius * np.cos(angle), radius * np.sin(angle)]
    np.testing.assert_allclose(frame_noise(seed, frame, (2, 2, 2)).ravel(), expected, rtol=1e-5, atol=1e-6)


def test_frames_and_seeds_differ_and_repeat() -> None:
    first = frame_noise(42, 0, SHAPE)
    assert first.dtype == np.float32
    assert (first == frame_noise(42, 0, SHAPE)).all()
    others = [frame_noise(42, 1, SHAPE), frame_noise(43, 0, SHAPE), frame_noise(42 + 2**32, 0, SHAPE)]
    assert all(abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.15 for other in others)


def test_an_element_count_that_four_does_not_divide_is_cut() -> None:
    assert (frame_noise(1, 2, (3, 1, 1)).ravel() == frame_noise(1, 2, (4, 1, 1)).ravel()[:3]).all()


@pytest.mark.parametrize("count", [16, 17, 31, 32, 100, 4 * 28 * 16 * 16])
@pytest.mark.parametrize("skipped", [0, 1, 12])
def test_torchs_sequence_without_torch(count: int, skipped: int) -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(42)
    for _ in range(skipped):
        torch.rand([], generator=generator)
    expected = torch.randn(count, generator=generator).numpy()
    np.testing.assert_allclose(torch_normal(42, skipped, count), expected, rtol=0, atol=3e-6)


def test_the_recorded_sequences_of_torch(golden_dir: Path) -> None:
    """Also few values, counts that 16 does not divide, and seeds of more than 32 bits."""
    golden = np.load(golden_dir / "helpers" / "torch_reference.npz")
    names = [name for name in golden if name.startswith("noise_")]
    assert len(names) == 10
    for name in names:
        seed, skipped, count = map(int, name.split("_")[1:])
        values = torch_normal(seed, skipped, count)
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, golden[name], rtol=0, atol=3e-6, err_msg=name)


def test_the_oracles_initial_latents(shared_dir: Path) -> None:
    expected = np.load(shared_dir / "golden" / "pipeline" / "shared_inputs.npz")["initial_latents"]
    latents = upstream_noise(42, 2, 28, SHAPE)
    assert latents.shape == (28, *SHAPE)
    np.testing.assert_allclose(latents.swapaxes(0, 1)[None], expected, rtol=0, atol=3e-6)
