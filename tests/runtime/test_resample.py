"""The original's resampling, against torchaudio's own results."""

import numpy as np
import pytest

from vexpress_trt.runtime.resample import sinc_resample


@pytest.mark.parametrize("rate", [8000, 11025, 24000, 44100, 48000])
def test_equals_torchaudio(golden_dir, rate):
    """`torchaudio.functional.resample` 2.11 of noise, two channels; 11,025 and 44,100 Hz take 160 filters or more."""
    golden = np.load(golden_dir / "helpers" / "sinc_resample.npz")
    result = sinc_resample(golden[f"in_{rate}"], rate, 16_000)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, golden[f"out_{rate}"], rtol=0, atol=4e-7)


def formula(samples: np.ndarray, source: int, target: int) -> np.ndarray:
    """The filter as it is written down, in float64: a sum over all input samples for every output sample.

    Output n lies at n / target seconds, input k at k / source; their distance counts in periods of the cut-off rate,
    and the Hann window ends six of them away.
    """
    cutoff = 0.99 * min(source, target)
    count = -(-len(samples) * target // source)
    distance = (np.arange(len(samples)) / source - np.arange(count)[:, None] / target) * cutoff
    weights = np.sinc(distance) * np.cos(np.pi * np.clip(distance, -6, 6) / 12) ** 2 * cutoff / source
    return weights @ samples.astype(np.float64)


@pytest.mark.parametrize("rate", [8000, 22050, 24000, 44100, 48000])
@pytest.mark.parametrize("length", [1, 3, 700])
def test_equals_the_formula(rate, length):
    """To the rounding of the float32 filters, to the edges, and for sounds shorter than the filter."""
    noise = np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32)
    result = sinc_resample(noise[None], rate, 16_000)[0]
    np.testing.assert_allclose(result, formula(noise, rate, 16_000), rtol=0, atol=5e-5)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_a_constant_stays_the_same_constant(rate):
    ones = sinc_resample(np.ones((1, rate // 4), np.float32), rate, 16_000)[0]
    np.testing.assert_allclose(ones[50:-50], 1.0, atol=2e-3)


def test_length_is_rounded_up_in_float32_as_torchaudio_does():
    """180,697 samples at 44.1 kHz are 65,559.002 at 16 kHz, which float32 holds as 65,559."""
    assert sinc_resample(np.zeros((1, 180_697), np.float32), 44_100, 16_000).shape == (1, 65_559)


def test_result_does_not_depend_on_how_it_is_cut_up():
    noise = np.random.default_rng(0).standard_normal((1, 3 * 5000)).astype(np.float32)
    whole = sinc_resample(noise, 24_000, 16_000)
    later = sinc_resample(noise[:, 3000:], 24_000, 16_000)
    np.testing.assert_allclose(whole[:, 2050:], later[:, 50:], rtol=0, atol=1e-6)


def test_equal_rates_change_nothing():
    noise = np.random.default_rng(0).standard_normal((2, 100)).astype(np.float32)
    assert sinc_resample(noise, 16_000, 16_000) is noise


def test_a_tone_stays_the_same_tone():
    seconds = np.arange(44_100) / 44_100
    tone = sinc_resample(np.sin(2 * np.pi * 440 * seconds)[None].astype(np.float32), 44_100, 16_000)[0]
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(tone[100:-100], expected[100:-100], atol=2e-3)
