"""DDIM as the oracle steps it, and a solver of second order for the same schedule."""

import re
from pathlib import Path

import numpy as np
import pytest

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import SchedulerConfig
from vexpress_trt.runtime.scheduler import SOLVERS, Scheduler, alphas_cumprod, make_scheduler

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
        weights = scheduler.weights(index)
        stepped = weights.sample * sample + weights.prediction * prediction
        original = weights.signal * sample - weights.noise * prediction
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


def _error(solver: str, steps: int, deviation: float = 1.0, start: float = 1.3) -> float:
    """How far from the exact path's end a solver ends when the images are normal with this deviation around 0.2.

    The best prediction is known then, and so is where the path from noise `start` ends: at mean + deviation * start.
    """
    scheduler = make_scheduler(CONFIG, steps, solver)
    x, original = start, 0.0
    for step in range(steps):
        weights = scheduler.weights(step)
        signal, noise = float(weights.signal), float(weights.noise)
        expected = 0.2 + signal * deviation**2 * (x - signal * 0.2) / (signal**2 * deviation**2 + noise**2)
        v = (signal * x - expected) / noise
        x, original = weights.sample * x + weights.prediction * v + weights.history * original, expected
    return abs(float(x) - (0.2 + deviation * start))


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_end_where_the_exact_path_ends(solver: str) -> None:
    assert _error(solver, 500) < 1e-2


def test_the_second_order_gets_there_in_fewer_steps() -> None:
    for steps in (8, 10, 15, 25):
        assert _error("dpmpp_2m", steps) < 0.6 * _error("ddim", steps)


def test_one_and_two_steps_have_nothing_to_look_back_to() -> None:
    for steps in (1, 2):
        weights = [make_scheduler(CONFIG, steps, "dpmpp_2m").weights(step) for step in range(steps)]
        assert all(weight.history == 0 for weight in weights)
        assert weights[-1].sample == weights[-1].signal  # ends on the noise-free sample
        assert weights[-1].prediction == -weights[-1].noise


@pytest.mark.parametrize("steps", [10, 25])
def test_the_second_order_is_the_librarys(steps: int) -> None:
    """diffusers' DPMSolverMultistepScheduler, but that it starts from large in place of infinite noise."""
    torch = pytest.importorskip("torch")
    from diffusers import DPMSolverMultistepScheduler

    library = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        timestep_spacing="trailing", rescale_betas_zero_snr=True, final_sigmas_type="zero", lower_order_final=True,
    )  # fmt: skip
    library.set_timesteps(steps)
    scheduler = make_scheduler(CONFIG, steps, "dpmpp_2m")
    assert library.timesteps.tolist() == scheduler.timesteps.tolist()
    random = np.random.default_rng(steps)
    ours = theirs = random.normal(size=(3, 4)).astype(np.float32)
    original = np.zeros_like(ours)
    for step, timestep in enumerate(library.timesteps):
        v, weights = random.normal(size=(3, 4)).astype(np.float32), scheduler.weights(step)
        theirs = library.step(torch.from_numpy(v), timestep, torch.from_numpy(theirs)).prev_sample.numpy()
        stepped = weights.sample * ours + weights.prediction * v + weights.history * original
        ours, original = stepped, weights.signal * ours - weights.noise * v
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-2)
