"""DDIM with zero terminal SNR, trailing timesteps and v-prediction (golden README, section 4, "Scheduler").

Song et al. 2021 for the step, Lin et al. 2024 for the rescaled schedule and the spacing.
"""

import numpy as np

from vexpress_trt.engines.errors import UserError
from vexpress_trt.engines.manifest import SchedulerConfig


class Scheduler:
    """The steps of one generation: `timesteps` int64 [S], from noise to image.

    A step is linear in what it is given: previous = a * sample + b * prediction, see `coefficients`.
    """

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
        self._previous = self.timesteps - total // steps  # upstream's: not always the next timestep of the list

    def coefficients(self, step: int) -> tuple[np.float32, np.float32]:
        """(a, b) of step number `step`, so that previous = a * sample + b * prediction."""
        signal, noise = self._signal_noise(self.timesteps[step])
        next_signal, next_noise = self._signal_noise(self._previous[step])
        return np.float32(next_signal * signal + next_noise * noise), np.float32(
            next_noise * signal - next_signal * noise
        )

    def step(self, sample: np.ndarray, prediction: np.ndarray, step: int) -> np.ndarray:
        """The sample after step number `step`; float32 arrays of one shape."""
        a, b = self.coefficients(step)
        return a * sample + b * prediction

    def original(self, sample: np.ndarray, prediction: np.ndarray, step: int) -> np.ndarray:
        """The noise-free sample that the prediction implies: signal * sample - noise * prediction."""
        signal, noise = self._signal_noise(self.timesteps[step])
        return np.float32(signal) * sample - np.float32(noise) * prediction

    def _signal_noise(self, timestep: int) -> tuple[float, float]:
        alpha = float(self.alphas_cumprod[timestep]) if timestep >= 0 else 1.0
        return float(np.sqrt(alpha)), float(np.sqrt(1.0 - alpha))


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
