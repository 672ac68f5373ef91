"""Samples on disk, and statistics of a whole clip that equal those of arrays in memory."""

from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.runtime import waveform as waveform_module
from vexpress_trt.runtime.waveform import Waveform, WaveformStatistics

KERNEL, STRIDE = 10, 5


@pytest.fixture
def samples() -> np.ndarray:
    random = np.random.default_rng(0)
    return (np.cumsum(random.normal(0, 0.01, 9_003)) + random.normal(0.1, 0.02, 9_003)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waveform_module, "_BLOCK", 1000)


def _normalised(samples: np.ndarray) -> np.ndarray:
    statistics = WaveformStatistics.of(Waveform([samples]), KERNEL, STRIDE)
    return statistics.normalised(samples)


def test_what_goes_in_in_pieces_comes_out_in_any_parts(samples: np.ndarray) -> None:
    waveform = Waveform(np.split(samples, [10, 11, 5000]))
    assert len(waveform) == 9_003
    assert (waveform.read() == samples).all()
    assert (waveform.read(4_000, 6_001) == samples[4_000:6_001]).all()
    assert (np.concatenate(list(waveform.blocks())) == samples).all()
    assert len(waveform.read(9_000, 10_000)) == 3 and len(waveform.read(9_500, 9_600)) == 0


def test_a_truncated_sound_ends_there(samples: np.ndarray) -> None:
    waveform = Waveform([samples])
    waveform.truncate(100)
    assert (waveform.read() == samples[:100]).all()


def test_a_full_disk_is_a_sentence() -> None:
    def pieces():
        yield np.zeros(3, np.float32)
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="no room for the decoded sound .*TMPDIR"):
        Waveform(pieces())


def test_no_place_for_temporary_files_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    with pytest.raises(UserError, match="no folder for temporary files .*TMPDIR"):
        Waveform([])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(UserError, match="gone has no room for the decoded sound .*TMPDIR"):
        Waveform([])


def test_normalised_samples_have_zero_mean_and_unit_variance(samples: np.ndarray) -> None:
    waveform = _normalised(samples)
    assert waveform.dtype == np.float32
    assert abs(waveform.mean(dtype=np.float64)) < 1e-6
    assert abs(waveform.var(dtype=np.float64) - 1) < 1e-5


def test_the_oracles_normalisation(shared_dir: Path) -> None:
    golden = np.load(shared_dir / "golden" / "modules" / "wav2vec2.npz")
    np.testing.assert_allclose(_normalised(golden["waveform"]), golden["input_values"][0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["speech-like", "constant", "shorter than a window"])
def test_mean_and_variance_of_any_filter_follow_from_the_statistics(samples: np.ndarray, kind: str) -> None:
    if kind != "speech-like":
        samples = np.full(3000, 0.25, np.float32) if kind == "constant" else samples[:7]
    statistics = WaveformStatistics.of(Waveform([samples]), KERNEL, STRIDE)
    filters = np.random.default_rng(1).normal(size=(6, KERNEL))
    filters[0] = [1, -1, 0, 0, 0, 0, 0, 0, 0, 0]  # nearly cancels a smooth sound
    exact = (samples.astype(np.float64) - statistics.mean) / statistics.deviation
    windows = [exact[start : start + KERNEL] for start in range(0, len(exact) - KERNEL + 1, STRIDE)]
    outputs = np.array(windows) @ filters.T if windows else np.zeros((1, 6))
    variances = np.square(filters @ statistics.window_factor.T.astype(np.float64)).sum(axis=1)
    np.testing.assert_allclose(filters @ statistics.window_mean, outputs.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(variances, outputs.var(axis=0), rtol=1e-5, atol=1e-9)
