"""The noise a clip starts from: counter-based by default, or the original's sequence without torch.

Default: Philox 4x32-10 (Salmon et al. 2011), key = (seed mod 2^32, seed div 2^32), counter = (block, frame, 0, 0).
Block b gives elements 4b to 4b + 3 of the frame's [4, h, w] latent in C order. Each pair (x, y) of its four words
becomes two normals by Box-Muller, r cos(2 pi v) and r sin(2 pi v), with u = ((x >> 8) + 1) 2^-24, v = (y >> 8) 2^-24
and r = sqrt(-2 ln u), computed in float64 and rounded once. A frame's noise depends on nothing but the seed, its index
and the latent's size.
"""

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_BLOCK = 16  # torch's CPU generator makes normals in blocks of this size


def philox(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox 4x32-10 of counters uint32 [N, 4] under a key of two 32-bit words: uint32 [N, 4]."""
    c0, c1, c2, c3 = (column.astype(np.uint64) for column in counters.T)
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            product1 & _MASK,
            (product0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def frame_noise(seed: int, frame: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise of one frame, float32 of `shape` ([4, h, w]); see the module's text for the recipe."""
    count = int(np.prod(shape))
    counters = np.zeros((-(-count // 4), 4), np.uint32)
    counters[:, 0] = np.arange(len(counters), dtype=np.uint32)
    counters[:, 1] = frame
    words = philox(counters, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1, 2) >> np.uint32(8)
    radius = np.sqrt(-2.0 * np.log((words[:, 0] + 1.0) * 2.0**-24))
    angle = 2.0 * np.pi * (words[:, 1] * 2.0**-24)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)
    return pairs.reshape(-1)[:count].reshape(shape)


def upstream_noise(seed: int, skipped: int, frames: int, shape: tuple[int, ...]) -> np.ndarray:
    """The original's initial latents, float32 [frames, 4, h, w] for `shape` [4, h, w].

    The original draws [1, 4, frames, h, w] from torch's CPU generator after one scalar per layer of the audio encoder:
    `skipped` (golden README, section 4, "Noise / RNG").
    """
    channels, *size = shape
    values = torch_normal(seed, skipped, channels * frames * int(np.prod(size)))
    return values.reshape(channels, frames, *size).swapaxes(0, 1)


def torch_normal(seed: int, skipped: int, count: int) -> np.ndarray:
    """What `torch.randn(count)` gives on the CPU under a seed after `skipped` scalar `rand` draws, float32 [count].

    MT19937 seeded with the low 32 bits of the seed, one 32-bit draw per value, 24 of its bits as a uniform; Box-Muller
    over blocks of 16 values, the first eight of which give radii and the others angles. A last partial block is made
    anew from 16 further draws. Fewer than 16 values are made in pairs from 53-bit uniforms instead.
    """
    state = np.random.RandomState(seed & 0xFFFFFFFF).get_state()
    generator = np.random.MT19937()
    generator.state = {"bit_generator": "MT19937", "state": {"key": state[1], "pos": state[2]}}
    generator.random_raw(skipped, output=False)
    if count < _BLOCK:
        return _few_normals(generator, count)
    values = _uniforms(generator, count)
    whole = count - count % _BLOCK
    values[:whole] = _box_muller(values[:whole])
    if whole != count:
        values[-_BLOCK:] = _box_muller(_uniforms(generator, _BLOCK))
    return values


def _few_normals(generator: np.random.MT19937, count: int) -> np.ndarray:
    """torch's scalar path: each pair of normals from two 64-bit draws, high word first, in float64."""
    words = generator.random_raw(4 * -(-count // 2)).reshape(-1, 2, 2)
    angles, radii = (((words[..., 0] << _SHIFT | words[..., 1]) & np.uint64(2**53 - 1)) * 2.0**-53).T
    angle, radius = 2 * np.pi * angles, np.sqrt(-2 * np.log1p(-radii))
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)[:count].astype(np.float32)


def _uniforms(generator: np.random.MT19937, count: int) -> np.ndarray:
    draws = generator.random_raw(count).astype(np.uint32) & np.uint32(0xFFFFFF)
    return draws.astype(np.float32) * np.float32(2.0**-24)


def _box_muller(uniforms: np.ndarray) -> np.ndarray:
    blocks = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(np.float32(-2.0) * np.log(np.float32(1.0) - blocks[:, 0]))
    angle = np.float32(2.0 * np.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
