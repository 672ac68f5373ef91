"""Solvers for the schedule with zero terminal SNR, trailing timesteps and v-prediction.

DDIM (Song et al. 2021) is the original's (golden README, section 4, "Scheduler"); schedule and spacing are those of Lin
et al. 2024. DPM-Solver++ 2M (Lu et al. 2022) needs fewer steps for the same error.
"""

from dataclasses import dataclass

import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import SchedulerConfig
from vexpress_trt.runtime.request import SOLVERS


@dataclass(frozen=True)
class StepWeights:
    """A step is linear in what it is given, all float32:

    next = sample * x + prediction * v + history * h, where h is the noise-free sample that the step before implied;
    the one that this step implies is signal * x - noise * v.
    """

    sample: np.float32
    prediction: np.float32
    history: np.float32
    signal: np.float32
    noise: np.float32


class Scheduler:
    """The steps of one generation by DDIM: `timesteps` int64 [S], from noise to image."""

    remembers = False  # whether a step takes the noise-free sample of the one before

    def __init__(self, config: SchedulerConfig, steps: int) -> None:
        """Raises UserError for a number of steps that the schedule does not have, ValueError for another schedule."""
        if not 1 <= steps <= config.num_train_timesteps:
            raise UserError(f"--num_inference_steps {steps}: must be from 1 to {config.num_train_timesteps}.")
        if (config.timestep_spacing, config.prediction_type) != ("trailing", "v_prediction"):
            raise ValueError(f"no scheduler for {config.timestep_spacing} spacing and {config.prediction_type}")
        self.config = config
        self.steps = steps
        self.alphas_cumprod = alphas_cumprod(config)
        total = config.num_train_timesteps
        self.timesteps = np.round(np.arange(total, 0, -total / steps)).astype(np.int64) - 1
        self._next = self.timesteps - total // steps  # upstream's: not always the next timestep of the list

    def weights(self, step: int) -> StepWeights:
        """What step number `step` multiplies what it is given with."""
        signal, noise = self._signal_noise(self.timesteps[step])
        next_signal, next_noise = self._signal_noise(self._next[step])
        return StepWeights(
            np.float32(next_signal * signal + next_noise * noise),
            np.float32(next_noise * signal - next_signal * noise),
            np.float32(0.0),
            np.float32(signal),
            np.float32(noise),
        )

    def _signal_noise(self, timestep: int) -> tuple[float, float]:
        alpha = float(self.alphas_cumprod[timestep]) if timestep >= 0 else 1.0
        return float(np.sqrt(alpha)), float(np.sqrt(1.0 - alpha))


class MultistepScheduler(Scheduler):
    """DPM-Solver++ 2M: a step extrapolates the noise-free sample from this step's and the last one's.

    The first step has nothing to extrapolate from, the second starts from infinite noise and the last one goes to none:
    these three are of first order.
    """

    remembers = True

    def __init__(self, config: SchedulerConfig, steps: int) -> None:
        """As `Scheduler`."""
        super().__init__(config, steps)
        self._next = np.append(self.timesteps[1:], -1)

    def weights(self, step: int) -> StepWeights:
        """What step number `step` multiplies what it is given with."""
        signal, noise = self._signal_noise(self.timesteps[step])
        next_signal, next_noise = self._signal_noise(self._next[step])
        kept = next_noise / noise
        gained = next_signal - kept * signal  # alpha_next (1 - exp(-h)) of the paper
        beyond = 0.0
        if 1 < step < self.steps - 1:
            beyond = self._log_snr_gain(step) / (2 * self._log_snr_gain(step - 1))
        return StepWeights(
            np.float32(kept + gained * (1 + beyond) * signal),
            np.float32(-gained * (1 + beyond) * noise),
            np.float32(-gained * beyond),
            np.float32(signal),
            np.float32(noise),
        )

    def _log_snr_gain(self, step: int) -> float:
        """The paper's h: by how much log(signal / noise) grows in a step."""
        signal, noise = self._signal_noise(self.timesteps[step])
        next_signal, next_noise = self._signal_noise(self._next[step])
        return float(np.log(next_signal / next_noise) - np.log(signal / noise))


def make_scheduler(config: SchedulerConfig, steps: int, solver: str = SOLVERS[0]) -> Scheduler:
    """The scheduler of a solver's name, one of SOLVERS."""
    return {"ddim": Scheduler, "dpmpp_2m": MultistepScheduler}[solver](config, steps)


def alphas_cumprod(config: SchedulerConfig) -> np.ndarray:
    """The schedule's cumulative signal, float32 [num_train_timesteps]; the last is exactly 0 with zero terminal SNR.

    Computed in float32 by way of the rescaled betas, as the original: at the noisy end its rounding can be seen in the
    third digit of a step's smallest results.
    """
    if config.beta_schedule != "scaled_linear":
        raise ValueError(f"no scheduler for the beta schedule {config.beta_schedule}")
    count = config.num_train_timesteps
    first, last = np.float32(config.beta_start**0.5), np.float32(config.beta_end**0.5)
    rise, index = (last - first) / np.float32(count - 1), np.arange(count, dtype=np.float32)
    # torch's linspace counts from the nearer end and its products accumulate in float64: both show in the last digits.
    root = np.where(index < count // 2, first + rise * index, last - rise * index[::-1])
    cumulative = _running_product(1 - root**2)
    if not config.rescale_zero_terminal_snr:
        return cumulative
    signal = np.sqrt(cumulative)
    signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    rescaled = signal**2
    alphas = np.concatenate([rescaled[:1], rescaled[1:] / rescaled[:-1]])
    return _running_product(1 - (1 - alphas))


def _running_product(values: np.ndarray) -> np.ndarray:
    return np.cumprod(values, dtype=np.float64).astype(np.float32)
