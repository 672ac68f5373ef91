"""Writes torch_reference.npz: what torch computes for random numbers, so that tests of our own code need no torch.

Run with torch 2.13 from any folder: `python make_torch_reference.py`.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate


def resampled(values: np.ndarray, length: int) -> np.ndarray:
    """`F.interpolate` over the first axis, linear, half-pixel centres."""
    rows = torch.from_numpy(values).reshape(1, len(values), -1).transpose(1, 2)
    result = interpolate(rows, size=length, mode="linear", align_corners=False)
    return result.transpose(1, 2).reshape(length, *values.shape[1:]).numpy()


def noise(seed: int, skipped: int, count: int) -> np.ndarray:
    """`randn(count)` after `skipped` scalar `rand` calls, from the default CPU generator."""
    torch.manual_seed(seed)
    for _ in range(skipped):
        torch.rand([])
    return torch.randn(count).numpy()


def main() -> None:
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for dtype in ("float32", "float64"):
        for source, target in ((20, 28), (28, 28), (7, 100), (1, 5)):
            track = (random.random((source, 3, 2)) * 500).astype(dtype)
            arrays[f"track_{dtype}_{source}_to_{target}_in"] = track
            arrays[f"track_{dtype}_{source}_to_{target}_out"] = resampled(track, target)
    hidden = random.standard_normal((51, 6), dtype=np.float32)
    arrays["hidden"] = hidden
    for length in (8, 28, 36):
        arrays[f"hidden_to_{2 * length}"] = resampled(hidden, 2 * length)
    long = random.standard_normal((1549, 1), dtype=np.float32)
    arrays["long_hidden"] = long
    arrays["long_hidden_to_1856"] = resampled(long, 1856)
    for seed, skipped, count in (
        (42, 0, 16),
        (42, 2, 4096),
        (42, 12, 1000),
        (7, 12, 1007),
        (0, 1, 17),
        (2**32 + 5, 0, 33),
        (2**63 - 1, 3, 64),
        (3, 2, 15),
        (3, 0, 4),
        (11, 12, 1),
    ):
        arrays[f"noise_{seed}_{skipped}_{count}"] = noise(seed, skipped, count)
    np.savez_compressed(Path(__file__).with_name("torch_reference.npz"), **arrays)


if __name__ == "__main__":
    main()
