"""DDIM as the oracle steps it."""

import re
from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import SchedulerConfig
from vexpress_trt.runtime.scheduler import Scheduler, alphas_cumprod

CONFIG = SchedulerConfig()


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> dict[str, np.ndarray]:
    return dict(np.load(golden_dir / "helpers" / "ddim.npz"))


def test_the_schedule_ends_in_pure_noise(golden: dict[str, np.ndarray]) -> None:
    cumulative = alphas_cumprod(CONFIG)
    np.testing.assert_allclose(cumulative, golden["alphas_cumprod"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(1 - (cumulative[1:] / cumulative[:-1]), golden["betas"][1:], rtol=0, atol=1e-6)
    assert cumulative[-1] == 0.0


def test_without_rescaling_the_schedule_is_the_plain_product() -> None:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    plain = alphas_cumprod(SchedulerConfig(rescale_zero_terminal_snr=False))
    np.testing.assert_allclose(plain, np.cumprod(1 - betas), rtol=1e-5)


@pytest.mark.parametrize("steps", [3, 5, 10, 15, 25, 50])
def test_timesteps_trail(golden: dict[str, np.ndarray], steps: int) -> None:
    assert Scheduler(CONFIG, steps).timesteps.tolist() == golden[f"timesteps_{steps}"].tolist()


def test_steps_are_the_oracles(golden: dict[str, np.ndarray]) -> None:
    sample, prediction = golden["step_sample"], golden["step_model_output"]
    cases = [match for key in golden if (match := re.fullmatch(r"step_(\d+)_(\d+)_t(\d+)_prev", key))]
    assert len(cases) >= 10
    for case in cases:
        count, index, timestep = map(int, case.groups())
        scheduler = Scheduler(CONFIG, count)
        assert scheduler.timesteps[index] == timestep
        stepped, original = scheduler.step(sample, prediction, index), scheduler.original(sample, prediction, index)
        assert stepped.dtype == original.dtype == np.float32
        np.testing.assert_allclose(stepped, golden[case.string], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(original, golden[case.string.replace("prev", "x0")], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match="num_inference_steps"):
        Scheduler(CONFIG, steps)


def test_other_schedules_are_errors() -> None:
    with pytest.raises(ValueError, match="epsilon"):
        Scheduler(SchedulerConfig(prediction_type="epsilon"), 5)
    with pytest.raises(ValueError, match="linear"):
        Scheduler(SchedulerConfig(beta_schedule="linear"), 5)
